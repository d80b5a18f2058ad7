"""Word-level tokenizers over the world's vocabulary, in the form that plain transformers and diffusers open."""

from seedx_lite.world.language import BOX_END, BOX_START, LOCATION_TOKENS, WORD, vocabulary

PAD, BOS, UNK, EOS = ("<pad>", "<s>", "<unk>", "</s>")  # ids 0 to 3: CLIP takes an old pooling path if </s> is id 2


def clip_tokenizer(max_length: int):
    """A `PreTrainedTokenizerFast` for the text encoders: `<s> words </s>`, padded with `<pad>` to `max_length`;
    the tokens of boxes are words, too.

    Both places of an SDXL pipeline take it, and it saves and loads without this package.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokens = (PAD, BOS, UNK, EOS, *vocabulary(), BOX_START, BOX_END, *LOCATION_TOKENS)
    ids = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNK))
    tokenizer.normalizer = normalizers.Lowercase()
    split = pre_tokenizers.Split(Regex(WORD), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), split])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}", special_tokens=[(BOS, ids[BOS]), (EOS, ids[EOS])]
    )
    special = {"bos_token": BOS, "eos_token": EOS, "unk_token": UNK, "pad_token": PAD}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=max_length, **special)
