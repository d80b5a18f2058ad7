"""Word-level tokenizers over the world's vocabulary, in the form that plain transformers and diffusers open."""

from collections.abc import Iterable

from seedx_lite.world.language import BOX_END, BOX_START, LOCATION_TOKENS, WORD, vocabulary, words

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


def check_words(tokenizer, texts: Iterable[str]) -> None:
    """Raises ValueError that names the words of a text that a tokenizer of ours does not know. Others spell such words
    in pieces, and pass."""
    for text in texts if tokenizer.unk_token == UNK else ():
        if unknown := [w for w in words(text) if tokenizer.convert_tokens_to_ids(w) == tokenizer.unk_token_id]:
            raise ValueError(f"{text!r}: unknown words {', '.join(unknown)}; say it in the world's vocabulary")


IMAGE_TOKENS = tuple(f"<img_{i:05d}>" for i in range(256))  # the learnable queries, for up to N = 256
MARKS = ("<img>", "</img>", "<patch>", "</patch>", BOX_START, BOX_END)
# What the prompts, and people who talk with an assistant, say beside the language of the world.
TALK = """question answer inst [ ] / : ! ' - draw paint generate show describe find detect edit picture image photo
    scene please me i you can could would see this that here now not no such nothing do does which was were has have
    for from one more again thanks hello sure new old look looks like only all everything whole"""


def llm_tokenizer():
    """A `PreTrainedTokenizerFast` for the language model: `<s>`, then words, line breaks and the special tokens.

    Ids in the official order: words, image tokens, locations, marks. `</s>` is left to the caller, as with LLaMA.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import AddedToken, PreTrainedTokenizerFast

    own = (UNK, BOS, EOS, PAD)
    known = dict.fromkeys((*own, *vocabulary(), *words(TALK), "\n"))
    tokenizer = Tokenizer(models.WordLevel({token: number for number, token in enumerate(known)}, unk_token=UNK))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n"), "isolated"),
            pre_tokenizers.Split(" ", "removed"),
            pre_tokenizers.Split(Regex(WORD), "isolated"),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 1)])
    # Words are joined by spaces, but none before a comma, a full stop and the like.
    spaced, first = decoders.Replace(Regex(r"^(?=[\w\[])"), " "), decoders.Replace(Regex(r"^ |(?<=\n) "), "")
    tokenizer.decoder = decoders.Sequence([spaced, decoders.Fuse(), first])
    tokenizer.add_special_tokens(list(own))
    extra = (*IMAGE_TOKENS, *LOCATION_TOKENS, *MARKS)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in extra])
    special = {"bos_token": BOS, "eos_token": EOS, "unk_token": UNK, "pad_token": PAD}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)
