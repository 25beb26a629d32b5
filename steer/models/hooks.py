"""PyTorch forward hooks, each as a context manager. No other file registers a hook."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

TensorEdit = Callable[[Tensor], Tensor]


def edit_output(module: nn.Module, edit: TensorEdit) -> RemovableHandle:
    """While the returned handle is open, `module` gives `edit(h)` where it gave `h`."""

    def hook(_module: nn.Module, _args: object, output: Tensor | tuple[Tensor, ...]) -> object:
        # Blocks give a bare tensor since transformers 4.56 and a tuple in other releases.
        if isinstance(output, tuple):
            return (edit(output[0]), *output[1:])
        return edit(output)

    return module.register_forward_hook(hook)


def edit_input(module: nn.Module, edit: TensorEdit) -> RemovableHandle:
    """While the returned handle is open, `module` is given `edit(h)` where it was given `h`."""
    return module.register_forward_pre_hook(lambda _module, args: (edit(args[0]), *args[1:]))


def watch_arguments(module: nn.Module, see: Callable[[Mapping[str, Any]], None]) -> RemovableHandle:
    """While the returned handle is open, `see` gets each call's arguments by name, beforehand."""
    signature = inspect.signature(module.forward)

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        bound = signature.bind_partial(*args, **kwargs).arguments
        see({**bound, **bound.pop("kwargs", {})})

    return module.register_forward_pre_hook(hook, with_kwargs=True)


@contextmanager
def keeping(module: nn.Module) -> Iterator[list[Tensor]]:
    """Yield a list with `module`'s latest output, if a tensor, before edits registered later."""
    kept: list[Tensor] = []

    def hook(_module: nn.Module, _args: object, output: object) -> None:
        kept[:] = [output.detach()] if isinstance(output, Tensor) else []

    with module.register_forward_hook(hook):
        yield kept


@contextmanager
def replaying(blocks: Sequence[nn.Module], output: Tensor) -> Iterator[None]:
    """While open, `blocks`, the model's first, are not computed: the last gives `output`.

    For passes over the same tokens that differ only behind these blocks. Hooks fire as ever.
    """

    def skip(hidden_states: Tensor, *_args: object, **_kwargs: object) -> Tensor:
        return hidden_states

    def replay(*_args: object, **_kwargs: object) -> Tensor:
        return output

    with ExitStack() as stack:
        for number, block in enumerate(blocks):
            stack.enter_context(_forward(block, replay if number == len(blocks) - 1 else skip))
        yield


@contextmanager
def _forward(module: nn.Module, forward: Callable[..., Tensor]) -> Iterator[None]:
    # accelerate keeps its own `forward` in the instance: what was there comes back.
    before = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        del module.__dict__["forward"]
        if before is not None:
            module.__dict__["forward"] = before


class _Enough(Exception):
    """All that was asked for has been read: no error, but the way out of a forward pass."""


@contextmanager
def reading(modules: Iterable[tuple[int, nn.Module]]) -> Iterator[dict[int, Tensor]]:
    """Yield a dict that a pass fills with block outputs, without graph, by key.

    The pass ends after the last module of the network's order; nothing behind it is computed.
    `modules` must come in that order. Hooks that edit must be registered before, to be seen.
    """
    recorded: dict[int, Tensor] = {}
    ordered = list(modules)

    def keeper(key: int, last: bool) -> TensorEdit:
        def keep(hidden: Tensor) -> Tensor:
            recorded[key] = hidden.detach()
            if last:
                raise _Enough
            return hidden

        return keep

    with ExitStack() as stack:
        for key, module in ordered:
            stack.enter_context(edit_output(module, keeper(key, key == ordered[-1][0])))
        with suppress(_Enough):
            yield recorded
