// Colours of a similarity map. Lightness rises evenly and hue goes from blue to yellow, which readers with any common
// colour blindness tell apart. The scale runs from 0 to the study's limit for every concept alike.

/** Stops at equal distances: plasma without its darkest part, and cividis (both of matplotlib, CC0).
 * @type {Record<string, number[][]>} */
export const PALETTES = {
  plasma: [
    [62, 4, 156],
    [105, 0, 168],
    [143, 13, 164],
    [177, 42, 144],
    [204, 71, 120],
    [225, 100, 98],
    [242, 132, 75],
    [252, 166, 54],
    [252, 206, 37],
    [240, 249, 33],
  ],
  cividis: [
    [0, 34, 78],
    [18, 53, 112],
    [59, 73, 108],
    [87, 93, 109],
    [112, 113, 115],
    [138, 134, 120],
    [165, 156, 116],
    [195, 179, 105],
    [225, 204, 85],
    [254, 232, 56],
  ],
};
const FAINTEST = 0.12; // opacity where a map just passes the absent level: seen, and not taken for a finding

/**
 * Red, green and blue of a share of the scale.
 * @param {string} palette @param {number} share
 */
export function colour(palette, share) {
  const stops = PALETTES[palette];
  const place = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
  const index = Math.min(Math.floor(place), stops.length - 2);
  return stops[index].map((value, channel) =>
    Math.round(value + (stops[index + 1][channel] - value) * (place - index)),
  );
}

/**
 * Opacity from 0 to 1: nothing at or below the absent level, all of it at the limit.
 * @param {number} value @param {number} absent @param {number} limit
 */
export function strength(value, absent, limit) {
  if (value <= absent) return 0;
  return FAINTEST + (1 - FAINTEST) * Math.min((value - absent) / Math.max(limit - absent, 1e-6), 1);
}

/**
 * A field of numbers as pixels.
 * @param {import("./field.js").Field} field @param {{ absent: number, limit: number, palette: string }} scale
 */
export function painted({ values, width, height }, { absent, limit, palette }) {
  const pixels = new ImageData(width, height);
  values.forEach((value, index) => {
    const opacity = strength(value, absent, limit);
    if (opacity === 0) return;
    pixels.data.set([...colour(palette, value / Math.max(limit, 1e-6)), Math.round(255 * opacity)], 4 * index);
  });
  return pixels;
}
