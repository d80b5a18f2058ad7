"""Word-level tokenizers over the world's vocabulary, in the form that plain transformers and diffusers open."""

from __future__ import annotations

from seedx_lite.world.language import BOX_END, BOX_START, LOCATION_TOKENS, vocabulary, words

PAD, BOS, UNK, EOS = ("<pad>", "<s>", "<unk>", "</s>")  # ids 0 to 3: CLIP takes an old pooling path if </s> is id 2


def clip_tokenizer(max_length: int):
    """A `PreTrainedTokenizerFast` for the text encoders: `<s> words </s>`, padded with `<pad>` to `max_length`;
    the tokens of boxes are words, too.

    Both places of an SDXL pipeline take it, and it saves and loads without this package.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {
        token: number
        for number, token in enumerate((PAD, BOS, UNK, EOS, *vocabulary(), BOX_START, BOX_END, *LOCATION_TOKENS))
    }
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNK))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Split(Regex(r"<[^<>\s]+>|\[\[|\]\]|[a-z]+|\d|[^\sa-z\d]"), "isolated"),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}", special_tokens=[(BOS, ids[BOS]), (EOS, ids[EOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        pad_token=PAD,
        model_max_length=max_length,
    )


def check_words(text: str) -> None:
    """Raise ValueError that names the words of `text` which this world does not know."""
    unknown = sorted(set(words(text)) - set(vocabulary()))
    if unknown:
        raise ValueError(
            f"{text!r} has words that this world does not know: {', '.join(unknown)}. "
            "`seedx_lite.world.language.vocabulary()` lists those it knows."
        )
