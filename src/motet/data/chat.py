"""Conversations to tokens: what the model reads and what it is trained on.

Every assistant turn is rendered as the prompt that generation would see, followed by the turn's own tokens and the
end-of-turn token, so the prompt of a rollout is a prefix of the training example by construction.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import TemplateError

from motet.base.errors import UserError
from motet.base.recipe import Chat
from motet.base.records import Message, Verdict
from motet.verify.structure import CLOSE, OPEN, split

DEFAULT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Rendered(NamedTuple):
    tokens: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    """True where the token is one that the assistant writes: its text and the end-of-turn token."""


class ChatFormat:
    def __init__(self, tokenizer: Any, config: Chat) -> None:
        self.tokenizer = tokenizer
        self.config = config
        self.template = _template(tokenizer, config)
        self.end_token = self._end_of_turn()
        self.stop_tokens = frozenset({self.end_token, tokenizer.eos_token_id} - {None})

    def prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Tokens up to and including the opening of the assistant's turn."""
        return self.encode(self.prompt_text(messages))

    def completion(self, message: Message) -> tuple[int, ...]:
        """Tokens of an assistant turn, its end-of-turn token included."""
        return (*self.encode(self.completion_text(message)), self.end_token)

    def completion_text(self, message: Message) -> str:
        reasoning, content = message.get("reasoning_content", ""), message["content"]
        if self.config.think == "off":
            return f"{reasoning}\n{content}" if reasoning else content
        text = f"{OPEN}{reasoning}{CLOSE}{content}" if reasoning else content
        parts = split(text, "required")
        if isinstance(parts, Verdict):  # trained on, it would be malformed in RL
            raise UserError(
                f'chat.think = "required", but an assistant turn is not <think>reasoning</think>answer '
                f'({parts.detail}): {content[:80]!r}. Give its reasoning_content, or set chat.think = "off".'
            )
        return text.lstrip().removeprefix(OPEN) if self.config.open_think else text

    def render(self, messages: Sequence[Message]) -> list[Rendered]:
        """One training example a conversation; several where the template does not extend its own earlier text
        (templates that drop old reasoning): then each assistant turn is an example of its own."""
        examples: list[Rendered] = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt, completion = self.prompt(messages[:index]), self.completion(message)
            mask = [False] * len(prompt) + [True] * len(completion)
            if examples and prompt[: len(examples[-1].tokens)] == examples[-1].tokens:
                earlier = examples.pop()
                mask[: len(earlier.loss_mask)] = earlier.loss_mask
            examples.append(Rendered((*prompt, *completion), tuple(mask)))
        return examples

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of a completion, without its stop token."""
        end = len(tokens) - 1 if tokens and tokens[-1] in self.stop_tokens else len(tokens)
        return str(
            self.tokenizer.decode(list(tokens[:end]), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        )

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """What generation would see: the template's rendering up to the opening of the assistant's turn."""
        turns = [dict(m) for m in messages]
        if self.config.system is not None and (not turns or turns[0]["role"] != "system"):
            turns.insert(0, {"role": "system", "content": self.config.system})
        text = self._apply_template(turns, add_generation_prompt=True)
        opened = text.rstrip().endswith(OPEN)
        if opened and self.config.think == "required" and not self.config.open_think:
            raise UserError(f"the chat template ends a prompt with {OPEN} itself; set chat.open_think = true")
        return text + (OPEN if self.config.open_think and not opened else "")

    def template_text(self, messages: Sequence[Message]) -> str:
        """What the template itself writes for a whole conversation. It is not what is trained on (see `render`)."""
        return self._apply_template([dict(m) for m in messages], add_generation_prompt=False)

    def _apply_template(self, turns: list[dict[str, str]], add_generation_prompt: bool) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    turns, chat_template=self.template, tokenize=False, add_generation_prompt=add_generation_prompt
                )
            )
        except TemplateError as error:  # "System role not supported", say
            roles = ", ".join(turn["role"] for turn in turns)
            raise UserError(f"the chat template refuses a conversation of {roles}: {error}") from error

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def _end_of_turn(self) -> int:
        """The first token that the template writes after an assistant's text; the tokenizer's eos where it has none."""
        marker = "motet-marker"
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": marker}]
        text = self._apply_template(turns, add_generation_prompt=False)
        _, found, after = text.rpartition(marker)
        if not found:
            raise UserError("the chat template does not write what the assistant says")
        # not all_special_ids: it lacks tokens that have no role such as eos, Llama 3's <|eot_id|> say
        specials = {id for id, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        end = next((token for token in self.encode(after.lstrip()) if token in specials), self.tokenizer.eos_token_id)
        if end is None:
            raise UserError("the tokenizer has no end-of-turn token: its template writes none and eos_token is not set")
        return int(end)


def _template(tokenizer: Any, config: Chat) -> str:
    if config.template is not None:
        try:
            return Path(config.template).read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"chat.template = {config.template!r}: cannot be read ({error.strerror})") from error
    own = tokenizer.chat_template
    if own is None:
        missing = [t for t in ("<|im_start|>", "<|im_end|>") if t not in tokenizer.get_vocab()]
        if missing:
            raise UserError("the tokenizer has no chat template; give one as a jinja file in chat.template")
        return DEFAULT_TEMPLATE
    if isinstance(own, dict):
        own = own.get("default") or next(iter(own.values()))
    return str(own)
