"""The passes of ``generate()`` as one sequence."""

from __future__ import annotations

import torch
from torch import Tensor

from fastrec._errors import RaggedError
from fastrec.recording._recording import Recording


def stitch(recording: Recording, key: str, *, beam_indices: Tensor | None = None) -> Tensor:
    """Join the values of one ``generate()`` along the sequence: those of the prompt's pass and of each token's.

    >>> import torch, transformers, fastrec
    >>> from fastrec.integrations.transformers import stitch
    >>> config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=50, bos_token_id=0, eos_token_id=0)
    >>> model = transformers.GPT2LMHeadModel(config).eval()
    >>> prompt = torch.tensor([[5, 6, 7]])
    >>> with fastrec.Recorder(model, keep_module="transformer.h.0") as rec:
    ...     tokens = model.generate(prompt, min_new_tokens=4, max_new_tokens=4, pad_token_id=0)
    >>> tokens.shape, stitch(rec.recording, "transformer.h.0").shape
    (torch.Size([1, 7]), torch.Size([1, 6, 8]))

    The result has one position less than the returned tokens, because the last token is not fed to the model again.
    It equals what one pass over the returned tokens computes, up to rounding.

    Arguments:
        recording: the passes of one call of ``generate()`` with its cache on; select them from a longer recording
            with ``recording.select(passes=...)``.
        key: an address, a site or a label, as in ``recording.stack(key)``, with values [batch, sequence, ...].
        beam_indices: what a beam search returns with ``return_dict_in_generate=True``. With it, each row follows a
            returned sequence through the beams; without it, a row is one beam, which switches between sequences.

    Returns a tensor [batch, sequence, ...].

    Raises RaggedError if the passes are not those of one cached ``generate()``.
    """
    values = [record.activation for record in recording[key]]
    pieces = [value for value in values if value is not None]
    lengths = [piece.shape[1] if piece.ndim > 1 else 0 for piece in pieces]
    if len(pieces) < len(values) or not pieces:
        raise RaggedError(f"{key!r} was kept without its values, so there is nothing to stitch")
    if any(length != 1 for length in lengths[1:]) or len({piece.shape[0] for piece in pieces}) > 1:
        raise RaggedError(_message(key, pieces))
    if beam_indices is not None:
        # Sequences that ended are padded with -1; what stands there is the value of any one beam.
        rows = beam_indices[:, : len(pieces)].clamp(min=0).unbind(1)
        pieces = [piece[row] for piece, row in zip(pieces, rows, strict=False)]
    return torch.cat(pieces, dim=1)


def _message(key: str, pieces: list[Tensor]) -> str:
    shapes = [tuple(piece.shape) for piece in pieces]
    text = ", ".join(map(str, shapes[:4])) + (", ..." if len(shapes) > 4 else "")
    return (
        f"the values of {key!r} have the shapes {text}, which are not one prompt followed by single tokens; select the "
        "passes of one generate() with recording.select(passes=...). With use_cache=False each pass holds the whole "
        f"sequence, so use recording.last({key!r})"
    )
