"""A synthetic chest-radiograph benchmark with exact truth: a projection model, not a drawing.

Soft bodies attenuate a polychromatic beam's effective energy along parallel rays; scatter and photon noise are added
and the result is windowed as a detector would. It does not model beam divergence, grids, or true pathology: it is a
test bed for methods, and says nothing about patients.
"""

from csr.data.phantom.generate import generate
from csr.data.phantom.plan import CLASSES, CONCEPTS, PhantomConfig, diagnose, draw_plan

__all__ = ["CLASSES", "CONCEPTS", "PhantomConfig", "diagnose", "draw_plan", "generate"]
