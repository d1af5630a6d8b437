"""``generate()`` of a language model: one pass per forward, stitched to what one pass over the text computes."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

import fastrec
from fastrec import Recorder, Recording
from fastrec.integrations.transformers import stitch

BLOCK, WIDTH = "transformer.h.1", 16
PROMPT = torch.tensor([[5, 6, 7, 8], [9, 3, 2, 4]])
NEW = 5


@pytest.fixture(scope="module")
def model() -> GPT2LMHeadModel:
    torch.manual_seed(1)
    config = GPT2Config(n_layer=2, n_head=2, n_embd=WIDTH, vocab_size=60, bos_token_id=0, eos_token_id=1)
    return GPT2LMHeadModel(config).eval()


def generate(model: GPT2LMHeadModel, rec: Recorder, prompt: Tensor = PROMPT, **options: Any) -> Any:
    return model.generate(prompt, min_new_tokens=NEW, max_new_tokens=NEW, pad_token_id=0, **options)


def teacher_forced(model: GPT2LMHeadModel, tokens: Tensor, **options: Any) -> Tensor:
    """The block's output in one pass over all tokens but the last, which generate() does not feed again."""
    with Recorder(model, keep_module=BLOCK) as rec, torch.no_grad():
        model(tokens[:, :-1], **options)
    return rec.recording.stack(BLOCK)[0]


@pytest.mark.parametrize(
    "options", [{"do_sample": False}, {"do_sample": True}, {"do_sample": True, "num_return_sequences": 2}]
)
def test_stitched_passes_equal_one_pass_over_the_text(model: GPT2LMHeadModel, options: dict[str, Any]) -> None:
    with Recorder(model, keep_module=BLOCK) as rec:
        tokens = generate(model, rec, **options)
    assert rec.recording.n_passes == NEW
    assert {record.ctx.entry for record in rec.recording} == {""}
    stitched = stitch(rec.recording, BLOCK)
    assert stitched.shape == (*tokens[:, :-1].shape, WIDTH)
    torch.testing.assert_close(stitched, teacher_forced(model, tokens), atol=1e-6, rtol=1e-5)


def test_functional_ops_are_stitched_too(model: GPT2LMHeadModel) -> None:
    with Recorder(model, keep_op="layernorm") as rec:
        tokens = generate(model, rec, do_sample=False)
    with Recorder(model, keep_op="layernorm") as once, torch.no_grad():
        model(tokens[:, :-1])
    sites = list(once.recording.sites)
    assert len(sites) == 5 and sites == list(rec.recording.sites)
    for site in sites:
        torch.testing.assert_close(stitch(rec.recording, site), once.recording.stack(site)[0], atol=1e-5, rtol=1e-4)


def test_left_padding_does_not_move_the_other_positions(model: GPT2LMHeadModel) -> None:
    prompt = torch.tensor([[0, 0, 5, 6, 7], [9, 3, 2, 4, 8]])
    mask = (prompt != 0).long()
    with Recorder(model, keep_module=BLOCK) as rec:
        tokens = generate(model, rec, prompt, attention_mask=mask, do_sample=False)
    stitched = stitch(rec.recording, BLOCK)
    alone = teacher_forced(model, tokens[:1, 2:])
    torch.testing.assert_close(stitched[:1, 2:], alone, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(stitched[1:], teacher_forced(model, tokens[1:]), atol=1e-6, rtol=1e-5)


def test_beams_are_rows_and_are_followed_through_the_search(model: GPT2LMHeadModel) -> None:
    with Recorder(model, keep_module=BLOCK) as rec:
        found = generate(model, rec, num_beams=3, num_return_sequences=2, do_sample=False, return_dict_in_generate=True)
    assert [tuple(record.activation.shape) for record in rec.recording] == [(6, 4, WIDTH)] + [(6, 1, WIDTH)] * (NEW - 1)
    expected = teacher_forced(model, found.sequences)
    followed = stitch(rec.recording, BLOCK, beam_indices=found.beam_indices)
    torch.testing.assert_close(followed, expected, atol=1e-6, rtol=1e-5)
    assert (found.beam_indices % 3 != found.beam_indices[:, :1] % 3).any(), "no sequence changed its beam"


def of_lengths(*lengths: int, batch: int = 2) -> Recording:
    net = torch.nn.Linear(4, 4)
    with Recorder(net, keep_op="linear") as rec:
        for length in lengths:
            net(torch.zeros(batch, length, 4))
    return rec.recording


def test_two_generations_are_told_apart_by_their_passes(model: GPT2LMHeadModel) -> None:
    with Recorder(model, keep_module=BLOCK) as rec:
        first = generate(model, rec, do_sample=False)
        second = generate(model, rec, PROMPT[:, :2], do_sample=False)
    with pytest.raises(fastrec.FastrecError, match=r"select\(passes=...\)"):
        stitch(rec.recording, BLOCK)
    for tokens, passes in ((first, slice(0, NEW)), (second, slice(NEW, 2 * NEW))):
        stitched = stitch(rec.recording.select(passes=passes), BLOCK)
        torch.testing.assert_close(stitched, teacher_forced(model, tokens), atol=1e-6, rtol=1e-5)


def test_without_its_cache_the_last_pass_is_the_whole(model: GPT2LMHeadModel) -> None:
    with Recorder(model, keep_module=BLOCK) as rec:
        tokens = generate(model, rec, do_sample=False, use_cache=False)
    with pytest.raises(fastrec.FastrecError, match=r"recording.last\('transformer.h.1'\)"):
        stitch(rec.recording, BLOCK)
    last = rec.recording.last(BLOCK).activation
    torch.testing.assert_close(last, teacher_forced(model, tokens), atol=1e-6, rtol=1e-5)


def test_a_prompt_of_one_token_needs_no_other_rule() -> None:
    assert stitch(of_lengths(1, 1, 1), "linear_1").shape == (2, 3, 4)
    with pytest.raises(fastrec.FastrecError, match=r"\(2, 1, 4\), \(2, 2, 4\), \(2, 3, 4\), which are not one prompt"):
        stitch(of_lengths(1, 2, 3), "linear_1")


def test_values_that_were_not_kept_can_not_be_stitched(model: GPT2LMHeadModel) -> None:
    with Recorder(model, keep_module=BLOCK, capture=fastrec.CaptureSpec(save_activation=False)) as rec:
        generate(model, rec, do_sample=False)
    with pytest.raises(fastrec.FastrecError, match="was kept without its values"):
        stitch(rec.recording, BLOCK)
