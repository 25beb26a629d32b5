"""Models: loading, hooks, and the interventions a method may ask for."""

from steer.models.chat import ChatFormat, build_model_input
from steer.models.edits import Add, AddKeepingNorm, Edit, LowRank, ProjectOut
from steer.models.gates import Gate
from steer.models.generation import Answer, generate, generate_batches

# The module has the function's name: imported here, it cannot take the function's place later.
from steer.models.get_model import get_model
from steer.models.interventions import (
    EditHeadInput,
    EditLayer,
    EditLogits,
    EditPrompt,
    EditTensor,
    Intervention,
)
from steer.models.positions import (
    EVERYWHERE,
    FROM_PROMPT_END,
    GENERATED,
    PROMPT,
    Positions,
    TokenMask,
)
from steer.models.steered_model import SteeredModel

__all__ = [
    "EVERYWHERE",
    "FROM_PROMPT_END",
    "GENERATED",
    "PROMPT",
    "Add",
    "AddKeepingNorm",
    "Answer",
    "ChatFormat",
    "Edit",
    "EditHeadInput",
    "EditLayer",
    "EditLogits",
    "EditPrompt",
    "EditTensor",
    "Gate",
    "Intervention",
    "LowRank",
    "Positions",
    "ProjectOut",
    "SteeredModel",
    "TokenMask",
    "build_model_input",
    "generate",
    "generate_batches",
    "get_model",
]
