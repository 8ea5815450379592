"""What the trained model predicts, computed by transformers from the 16-bit base and the adapter, in float32.

The other way round from the file that is to be checked: nothing of the converter, the merge or llama.cpp is in it. The
model is never loaded whole: each layer's weights are read when its turn comes and dropped after it, so memory does not
grow with the number of layers. All rows go through together.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from local.base import weight_files
from local.progress import Progress, silent
from local.quantizing.lora import Lora

BLOCK = 1 << 25  # numbers of a weight in float32 at a time; only output layers are larger

# Hears of each linear layer's name and its input, (tokens, columns) in float32.
OnInput = Callable[[str, Any], None]


def predictions(
    folder: Path,
    lora: Lora | None,
    rows: list[list[int]],
    *,
    progress: Progress = silent,
    on_input: OnInput | None = None,
    merge: bool = False,
) -> Any:
    """Logits at every token of every row, as float32 (tokens, vocabulary).

    Args:
        folder: model folder with 16- or 32-bit weights.
        lora: its adapter, added to the activations as in training; None: the model as it is.
        rows: token ids.
        on_input: for the importances of an imatrix; the logits are then not computed, and None is returned.
        merge: add the adapter to the weights, as the conversion does, to see what that alone changes.
    """
    import torch

    wide = max(map(len, rows))
    ids = torch.tensor([row + [0] * (wide - len(row)) for row in rows])
    real = torch.tensor([[True] * len(row) + [False] * (wide - len(row)) for row in rows])
    with torch.inference_mode(), Weights(folder) as weights:
        model = _skeleton(folder)
        if not weights.hold_all_of(model):
            model, lora = _whole(folder, lora, merge or on_input is not None), None
        _Stream(weights, lora, real, on_input, merge, progress).attach(model)
        # Padding stands at the end of a row, and no token looks ahead: those before it do not see it.
        body = model.get_decoder() if on_input is not None else model
        out = body(input_ids=ids, use_cache=False)
        return None if on_input is not None else out.logits[real].float().numpy()


def beside(model: Any, rows: list[list[int]]) -> Any:
    """The same of a model that is in memory, row by row."""
    import torch

    with torch.inference_mode():
        return torch.cat([model(input_ids=torch.tensor([row])).logits[0] for row in rows]).float().numpy()


def tables_of(folder: Path, lora: Lora | None, tokens: list[int], inputs: Any) -> tuple[Any, Any]:
    """What ``predictions`` makes of input embeddings and output layer: (tokens, columns), (inputs, tokens)."""
    import torch

    with torch.inference_mode(), Weights(folder) as weights:
        model = _skeleton(folder)
        weights.hold_all_of(model)
        first, last = model.get_input_embeddings(), model.get_output_embeddings()
        _Stream(weights, lora, torch.ones(1, len(tokens)), None, False, silent).attach(model, (first, last))
        return first(torch.tensor(tokens)), last(inputs)[:, tokens]


def _skeleton(folder: Path) -> Any:
    from transformers import AutoConfig

    return skeleton(AutoConfig.from_pretrained(folder, local_files_only=True))


def skeleton(config: Any) -> Any:
    """The model without weights: its parameters have shapes only, its buffers are real."""
    import torch
    from transformers import AutoModelForCausalLM

    register = torch.nn.Module.register_parameter

    def empty(module: Any, name: str, parameter: Any) -> None:
        if parameter is not None:
            parameter = torch.nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
        register(module, name, parameter)

    torch.nn.Module.register_parameter = empty
    try:
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    finally:
        torch.nn.Module.register_parameter = register


def _whole(folder: Path, lora: Lora | None, merge: bool) -> Any:
    """The model in memory: for bases whose files name the tensors otherwise (experts, mostly)."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    if lora is not None:
        from peft import PeftModel

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = PeftModel.from_pretrained(model, lora.path.parent)
            model = model.merge_and_unload() if merge else model
    return model.eval()


class Weights:
    """The tensors of a model folder, read from the files when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.where: dict[str, Any] = {}
        self.also: dict[str, str] = {}
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Weights:
        from safetensors import safe_open

        for path in weight_files(self.folder):
            file = self._open.enter_context(safe_open(path, framework="pt"))
            self.where |= dict.fromkeys(file.keys(), file)
        return self

    def __exit__(self, *exc: object) -> None:
        self._open.close()

    def hold_all_of(self, model: Any) -> bool:
        """Whether the files name the tensors as the model in memory does; transformers renames some while loading."""
        if model.config.get_text_config().tie_word_embeddings:
            self.also = dict(getattr(model, "_tied_weights_keys", None) or {})
        names = (name for name, _ in model.named_parameters(remove_duplicate=False))
        return all(name in self.where or self.also.get(name) in self.where for name in names)

    def stored(self, name: str) -> str:
        """What a tensor of the model is called in the files: that of a tied layer is another's."""
        return name if name in self.where else self.also[name]

    def slice(self, name: str) -> Any:
        """A tensor that is read when it is indexed."""
        name = self.stored(name)
        return self.where[name].get_slice(name)


class _Stream:
    """Gives each module its weights when it is called, and takes them away afterwards."""

    def __init__(
        self,
        weights: Weights,
        lora: Lora | None,
        real: Any,
        on_input: OnInput | None,
        merge: bool,
        progress: Progress,
    ) -> None:
        self.weights, self.lora, self.real, self.on_input, self.progress = weights, lora, real, on_input, progress
        self.merge = merge
        self.done = self.total = 0

    def attach(self, model: Any, only: tuple[Any, ...] = ()) -> None:
        """Serve the modules of a model, or ``only`` these."""
        import torch

        for name, module in model.named_modules():
            if only and not any(module is one for one in only):
                continue
            own = [key for key, value in module.named_parameters(recurse=False) if value.device.type == "meta"]
            if isinstance(module, torch.nn.Linear):
                self.total += 1
                module.register_forward_pre_hook(self._hear(name))
                if own:
                    module.forward = self._linear(name, module)
            elif isinstance(module, torch.nn.Embedding) and own:
                module.register_forward_pre_hook(self._gather(name))
            elif own:
                module.register_forward_pre_hook(self._load(name, own))
                module.register_forward_hook(self._drop(own))

    def _hear(self, name: str) -> Any:
        def hook(_module: Any, inputs: tuple[Any, ...]) -> None:
            self.done += 1
            self.progress("verify", self.done, self.total, "layers", "the 16-bit model's predictions")
            if self.on_input is not None:
                x = inputs[0]
                self.on_input(name, x[self.real] if x.shape[:2] == self.real.shape else x.reshape(-1, x.shape[-1]))

        return hook

    def _linear(self, name: str, module: Any) -> Any:
        """The layer, in blocks of its outputs, with the adapter beside it."""
        import torch

        biased = module.bias is not None
        stored = self.weights.stored(f"{name}.weight")
        tuned = self.lora if self.lora is not None and self.lora.adds_to(stored) else None

        def forward(x: Any) -> Any:
            weight = self.weights.slice(stored)
            if tuned is not None and self.merge:
                y = torch.nn.functional.linear(x, tuned.merged(stored, weight[:]))
            else:
                rows, columns = weight.get_shape()
                step = max(1, BLOCK // columns)
                blocks = (weight[at : at + step].float() for at in range(0, rows, step))
                y = torch.cat([torch.nn.functional.linear(x, block) for block in blocks], -1)
                y = self._beside(tuned, stored, x, y, weight) if tuned is not None else y
            return y + self.weights.slice(f"{name}.bias")[:].float() if biased else y

        return forward

    def _beside(self, tuned: Lora, stored: str, x: Any, y: Any, weight: Any) -> Any:
        """What a layer gives with its part of the adapter beside it, from what it gives alone."""
        import torch

        module = stored.removesuffix(".weight")
        if module in tuned.rows:
            y[..., list(tuned.rows[module].indices)] = x @ tuned.tensor(tuned.rows[module].values).T
        if module not in tuned.pairs:
            return y
        a, b, scale = tuned.factors(module)
        if tuned.pairs[module].embedding:  # of a tied embedding
            a, b = b.T, a.T
        y = y + (x @ a.T) @ b.T * scale
        if magnitude := tuned.pairs[module].magnitude:
            step = max(1, BLOCK // a.shape[1])
            lengths = [
                torch.linalg.vector_norm(weight[at : at + step].float() + scale * (b[at : at + step] @ a), dim=1)
                for at in range(0, len(b), step)
            ]
            y = y * (tuned.tensor(magnitude) / torch.cat(lengths))
        return y

    def _gather(self, name: str) -> Any:
        """Of an embedding only the rows that are asked for."""
        import torch

        def hook(module: Any, inputs: tuple[Any, ...]) -> Any:
            wanted, places = torch.unique(inputs[0], return_inverse=True)
            table = self.weights.slice(f"{name}.weight")
            rows = torch.cat([table[int(i) : int(i) + 1] for i in wanted]).float()
            if self.lora is not None and name in self.lora.pairs:
                a, b, scale = self.lora.factors(name)
                rows += a.T[wanted] @ b.T * scale
            if self.lora is not None and name in self.lora.rows:
                values = self.lora.tensor(self.lora.rows[name].values)
                for i, index in enumerate(self.lora.rows[name].indices):
                    rows[wanted == index] = values[i]
            module.weight = torch.nn.Parameter(rows, requires_grad=False)
            module.padding_idx = None
            return (places, *inputs[1:])

        return hook

    def _load(self, name: str, own: list[str]) -> Any:
        import torch

        def hook(module: Any, _inputs: Any) -> None:
            for key in own:
                value = self.weights.slice(f"{name}.{key}" if name else key)[:].float()
                setattr(module, key, torch.nn.Parameter(value, requires_grad=False))

        return hook

    def _drop(self, own: list[str]) -> Any:
        import torch

        def hook(module: Any, _inputs: Any, _output: Any) -> None:
            for key in own:
                setattr(module, key, torch.nn.Parameter(getattr(module, key).to("meta"), requires_grad=False))

        return hook


def batches(rows: list[list[int]], tokens: int) -> Iterator[list[list[int]]]:
    """Rows in groups of at most ``tokens`` tokens with their padding."""
    group: list[list[int]] = []
    for row in sorted(rows, key=len):
        if group and (len(group) + 1) * len(row) > tokens:
            yield group
            group = []
        group.append(row)
    if group:
        yield group
