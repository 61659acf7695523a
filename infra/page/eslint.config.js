// How the page's modules are written; types are tsc's, layout is prettier's.
import js from "@eslint/js";
import globals from "globals";

const html = "text goes in by textContent, elements by dom.js: markup from a string could hold a script";
const style = "the content security policy refuses style attributes; set element.style.property or a class";

export default [
  js.configs.recommended,
  {
    files: ["serving/interfaces/page/**/*.js"],
    languageOptions: { ecmaVersion: 2022, sourceType: "module", globals: globals.browser },
    linterOptions: { reportUnusedDisableDirectives: "error" },
    rules: {
      eqeqeq: "error",
      "no-alert": "error",
      "no-console": ["error", { allow: ["error"] }],
      "no-eval": "error",
      "no-implied-eval": "error",
      "no-new-func": "error",
      "no-shadow": "error",
      "no-throw-literal": "error",
      "no-var": "error",
      "object-shorthand": "error",
      "prefer-const": "error",
      "max-lines": ["error", 250],
      "no-restricted-properties": [
        "error",
        { property: "innerHTML", message: html },
        { property: "outerHTML", message: html },
        { property: "insertAdjacentHTML", message: html },
      ],
      "no-restricted-syntax": [
        "error",
        { selector: "CallExpression[callee.property.name='setAttribute'][arguments.0.value='style']", message: style },
      ],
    },
  },
  { files: ["**/strings.js"], rules: { "max-lines": "off" } }, // all texts are in one file, for whoever translates it
];
