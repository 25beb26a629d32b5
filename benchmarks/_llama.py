"""llama.cpp steered by a control vector, through llama-cpp-python."""

import ctypes
from pathlib import Path

import numpy as np
import torch
from _contract import STEPS
from gguf import GGUFReader, GGUFWriter
from gguf.quants import dequantize
from torch import Tensor

from steer.engines.recipes import Recipe
from steer.models import Add, EditLayer


def in_float32(source: Path, target: Path) -> None:
    """Write the GGUF file `source` anew, its weights as float32."""
    reader = GGUFReader(source)
    writer = GGUFWriter(target, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        kind, *of = field.types
        writer.add_key_value(name, field.contents(), kind, of[-1] if of else None)
    writer.add_file_type(0)
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class LlamaCpp:
    """llama.cpp in float32, its cache too.

    Args:
        path: A GGUF file.
        depth: Of the model.
        width: Of its residual stream.
    """

    def __init__(self, path: Path, depth: int, width: int) -> None:
        import llama_cpp

        self.cpp, self.depth, self.width = llama_cpp, depth, width
        float32 = llama_cpp.GGML_TYPE_F32
        self.llama = llama_cpp.Llama(
            str(path), n_ctx=512, logits_all=True, type_k=float32, type_v=float32, verbose=False
        )

    def __call__(self, prompt: list[int], answer: list[int], recipe: Recipe) -> Tensor:
        """As `_contract.Engine`."""
        self._steer(recipe)
        self.llama.reset()
        self.llama.eval(prompt + answer)
        rows = [len(prompt) - 1 + step for step in STEPS]
        logits = torch.from_numpy(self.llama.scores[rows].copy())
        return logits.float().log_softmax(-1)

    def _steer(self, recipe: Recipe) -> None:
        # From block 1 on: llama.cpp has no control vector at block 0.
        vectors = np.zeros((self.depth - 1, self.width), dtype=np.float32)
        for edit in recipe:
            assert isinstance(edit, EditLayer)
            assert isinstance(edit.edit, Add)
            vectors[edit.layer - 1] += edit.edit.change().numpy()
        data = vectors.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        code = self.cpp.llama_set_adapter_cvec(
            self.llama.ctx, data, vectors.size, self.width, 1, self.depth - 1
        )
        assert code == 0, f"llama.cpp refused the control vector ({code})"
