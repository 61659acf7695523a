"""Engines: what runs the two graphs of a bundle. The data plane knows the protocol and nothing of what is behind it.

`protocol` says what an engine is, `checked` is the half that they share, `ort` runs the graphs in this process,
`triton` asks a Triton server and builds its model repository.
"""

from serving.engines.ort import OrtEngine
from serving.engines.protocol import Engine
from serving.engines.triton.engine import TritonEngine

__all__ = ["Engine", "OrtEngine", "TritonEngine"]
