"""A tokenizer for a small Llama that is trained from nothing: byte-pair encoding of the training texts.

It has the control tokens of the prompt format, so that the shipped template and `guardrail.load` work with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from guardrail.prompting import Template

__all__ = ["PADDING", "train_tokenizer"]

PADDING = "<|finetune_right_pad_id|>"

# Words with the space before them, one to two digits, runs of punctuation, line breaks.
_WORDS = r" ?[\p{L}\p{M}]+('[\p{L}]{1,2})?|\p{N}{1,2}| ?[^\s\p{L}\p{N}]{1,3}|\s*[\r\n]+|\s+(?!\S)|\s+"
_RARE = 3
# The format's fixed phrases are one token each: they tell the model nothing word by word, and take most of a short
# prompt's time. Letters and spaces only, so that they are ordinary text to `TextTokenizer`.
_PHRASES = (
    " check if there is unsafe content in",
    " messages in conversations according our safety policy with the below categories",
    "begin unsafe content categories",
    "end unsafe content categories",
    "begin conversation",
    "end conversation",
    "\n\nprovide your safety assessment for only the last",
    " message in the above conversation",
    " first line must read",
    " if unsafe",
    " a second line must include a comma",
    "separated list of violated categories",
)


def train_tokenizer(
    texts: Iterable[str], prompts: Iterable[str], vocabulary: int, template: Template
) -> PreTrainedTokenizerFast:
    """Byte-pair encoding of lower-case text, learnt on texts and on prompts with answers.

    The prompts make sure that verdict words and the letters and numbers of codes are single tokens. `vocabulary` is
    the number of ids, control tokens and the format's phrases included.
    """
    whole = Tokenizer(BPE(byte_fallback=False))
    # Half of a small vocabulary would be the same words with a capital letter.
    whole.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    whole.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    whole.decoder = decoders.ByteLevel()
    control = [*template.control, PADDING]
    trainer = BpeTrainer(
        vocab_size=vocabulary - len(_PHRASES) - len(control),
        min_frequency=_RARE,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    whole.train_from_iterator(_corpus(texts, prompts), trainer)
    # Looked for in the lower-case text, also inside of user messages, where they mean the same.
    whole.add_tokens([AddedToken(phrase, normalized=True) for phrase in _PHRASES])
    whole.add_special_tokens(control)
    return PreTrainedTokenizerFast(
        tokenizer_object=whole,
        bos_token=template.control[0],
        eos_token=template.stop[0],
        pad_token=PADDING,
        clean_up_tokenization_spaces=False,
    )


def _corpus(texts: Iterable[str], prompts: Iterable[str]) -> Iterator[str]:
    yield from texts
    for prompt in prompts:
        for phrase in _PHRASES:
            prompt = prompt.lower().replace(phrase, "\0")
        yield from prompt.split("\0")
