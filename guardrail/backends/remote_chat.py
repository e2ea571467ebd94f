"""A served guard model that is sent the conversation, and not a prompt: the server renders it, with its own policy.

What can be scored this way is less than by prompt, and what cannot is an error. The policy is the one in the server's
chat template, so there is no other taxonomy. The codes are known as far as the answer shows them: behind `safe` no
category is more likely than P(unsafe), which is then its score. Some servers take an assistant's message at the end
for the beginning of their own answer, or call every speaker the user: an assistant's answer is judged only where the
number of tokens that the server read shows that it was rendered as the checkpoint's chat template does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from guardrail.backends.http import Client, Failure
from guardrail.backends.llama_family import FAMILIES, default_taxonomy
from guardrail.backends.remote_answers import NoLogprobs, generated, prompt_tokens
from guardrail.backends.remote_api import CHAT, LOGPROBS_HINT, chat_body, explained
from guardrail.backends.remote_chat_answers import read_chat
from guardrail.backends.remote_source import Source
from guardrail.calibration import Calibration
from guardrail.errors import BackendError, UsageError
from guardrail.prompting import Prompt, PromptBuilder, Template
from guardrail.prompting_header import Header
from guardrail.scoring import Logits
from guardrail.taxonomy import Taxonomy
from guardrail.tokens import byte_tokenizer
from guardrail.types import Conversation, Message, Role
from guardrail.workers import Workers

__all__ = ["RemoteChatBackend"]

MAX_BYTES: Final = 8192
"""Of a conversation; servers that cut longer ones short without a word begin at some 2,000 tokens."""
# Verdict with what stands before it; and the newline and the first code.
_VERDICT_TOKENS: Final = 4
_CODE_TOKENS: Final = 8
# The control token at the start and the newlines at the end: whether a server counts them is its own affair.
_SLACK: Final = 2
_TURNS: Final = {"<|user|>": Role.USER, "<|assistant|>": Role.ASSISTANT}


class RemoteChatBackend:
    """A served guard model, asked by chat. Thread-safe."""

    numerics = "remote"

    def __init__(
        self,
        client: Client,
        served: str,
        *,
        name: str,
        family: Template,
        taxonomy: Taxonomy,
        source: Source | None = None,
        top_logprobs: int = 20,
        concurrency: int = 16,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        """`family` is the format of the answers, `taxonomy` the policy that the server applies."""
        self.name = name
        self.template = _chat_format(family)
        self.tokenizer = byte_tokenizer(list(_TURNS))
        self.max_tokens = max_bytes
        self.default_taxonomy = taxonomy
        self.labels = taxonomy.codes
        self.calibration = source.calibration if source else Calibration()
        self._client = client
        self._served = served
        self._family = family
        self._source = source
        self._expected = PromptBuilder(source.template, taxonomy) if source else None
        self._top = top_logprobs
        self._workers = Workers(concurrency, "guardrail-remote")

    @classmethod
    def of(
        cls,
        client: Client,
        served: str,
        source: Source | None,
        template: str | None,
        *,
        name: str,
        top_logprobs: int,
        concurrency: int,
        max_tokens: int | None,
    ) -> RemoteChatBackend:
        """With the format of the source's checkpoint, or the named one. Raises UsageError when there is neither."""
        if source is None and template is None:
            hint = f"name the tokenizer, or at least the format: template=… or --template, one of {', '.join(FAMILIES)}"
            raise UsageError("a chat needs to know how the model words its answers", hint=hint)
        family = source.template if source else Template.load(template or "")
        if family.encoder:
            raise UsageError(f"template {family.id!r} has no verdict words", hint=f"one of {', '.join(FAMILIES)}")
        return cls(
            client,
            served,
            name=name,
            family=family,
            taxonomy=source.taxonomy if source else default_taxonomy(family),
            source=source,
            top_logprobs=top_logprobs,
            concurrency=concurrency,
            max_bytes=max_tokens or MAX_BYTES,
        )

    def logits(self, prompts: Sequence[Prompt], categories: bool = True) -> list[Logits | BackendError]:
        """One answer per prompt, in order; a request that failed is the error of its prompt only."""

        def judged(prompt: Prompt) -> Logits | BackendError:
            try:
                return self._judge(prompt, categories)
            except BackendError as error:
                return error

        try:
            return list(self._workers.pool.map(judged, prompts))
        except BackendError as error:
            return [error] * len(prompts)

    def close(self) -> None:
        """Give up what is under way."""
        self._client.close()
        self._workers.close()

    def _judge(self, prompt: Prompt, categories: bool) -> Logits:
        if set(prompt.taxonomy) != set(self.default_taxonomy):
            raise BackendError(
                f"the server applies a policy of its own, {self.default_taxonomy.id}, and no other",
                hint="leave the taxonomy out, or send prompts as tokens or text",
            )
        conversation = _conversation(prompt)
        if conversation.role is Role.ASSISTANT and self._expected is None:
            raise BackendError(
                "whether the server judges the assistant's answer cannot be checked without the tokenizer",
                hint="name it with tokenizer=… or --tokenizer",
            )
        messages = [{"role": message.role.value, "content": message.text} for message in conversation.messages]
        longest = _VERDICT_TOKENS + (_CODE_TOKENS if categories else 0)
        reply = self._client.post(chat_body(self._served, messages, longest, self._top), CHAT)
        if isinstance(reply, Failure):
            raise explained(reply)
        self._check_read(prompt_tokens(reply), conversation)
        try:
            answer = read_chat(generated(reply), self._family, prompt.codes if categories else ())
        except NoLogprobs as error:
            raise NoLogprobs(str(error), hint=LOGPROBS_HINT) from None
        return Logits(answer.safe, answer.unsafe, answer.codes, form="first")

    def _check_read(self, count: int | None, conversation: Conversation) -> None:
        """Refuse an answer to another conversation than was sent: one cut short, or with other speakers."""
        if self._expected is None or self._source is None:
            return
        if conversation.role is Role.USER:
            tokenizer = self._source.tokenizer
            least = sum(len(tokenizer.encode_text(message.text)) for message in conversation.messages)
            if count is not None and count < least:
                raise BackendError(
                    f"the server read {count} tokens of a conversation of {least} and more",
                    hint="it cuts long ones short: lower max_tokens, or give it a larger context",
                )
            return
        expected = len(self._source.tokenizer.encode(self._expected.build(conversation)))
        if count is None or abs(count - expected) > _SLACK:
            what = "an unknown number of" if count is None else str(count)
            raise BackendError(
                f"the server read {what} tokens, the checkpoint's chat template makes {expected}: "
                "it may not have judged the assistant's answer",
                hint="send prompts as tokens or text; llama.cpp's server needs --no-prefill-assistant",
            )


def _chat_format(family: Template) -> Template:
    """A format that only marks where each message begins, from which the messages are read again."""
    header = Header(
        family=family.family,
        control=tuple(_TURNS),
        roles={role: role.value for role in Role},
        category="line",
        encoder=True,
    )
    return Template("chat", f"chat for {family.ref}", header, "", _marked)


def _marked(roles: Sequence[Role], texts: Sequence[str], categories: Sequence[str]) -> str:
    marks: Mapping[Role, str] = {role: mark for mark, role in _TURNS.items()}
    return "".join(marks[role] + text for role, text in zip(roles, texts, strict=True))


def _conversation(prompt: Prompt) -> Conversation:
    """The messages of a prompt in the chat format; only the format itself has control segments."""
    messages: list[Message] = []
    for segment in prompt.segments:
        if segment.control:
            messages.append(Message(_TURNS[segment.text], ""))
        else:
            messages[-1] = Message(messages[-1].role, segment.text)
    return Conversation(tuple(messages))
