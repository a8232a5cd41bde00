"""The teacher behind an OpenAI-compatible server (vLLM, and most others): text in, text out."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

from abkd.data.text import completion_ids, prompt_text
from abkd.errors import ServerError
from abkd.generation import Completion, Sampling
from abkd.sources._store import key_of

logger = logging.getLogger("abkd")

T = TypeVar("T")

_NO_SUCH_PATH, _TOO_BUSY, _BROKEN = (404, 405), 429, 500


class _AgainError(Exception):
    """The server may answer if it is asked again."""


@dataclass(frozen=True)
class Server:
    """Writes the teacher's text through ``POST /v1/completions``, several prompts at a time.

    The prompt is sent as text, without the tokens that the server's tokenizer puts in front itself (BOS). The answer is
    tokenised as the completion of a data row is, and gets EOS where the server says that the model had finished.

    Args:
        url: of the server, with or without ``/v1``.
        name: the teacher's; a server of one model is asked for that one, whatever it calls it.
        tokenizer: the student's.
        at_once: requests that are under way together.
        timeout: seconds without an answer after which a request counts as lost.
        tries: how often a prompt is sent before the server is given up.
        pause: seconds before the second try; doubled before each further one.
    """

    url: str
    name: str
    tokenizer: Any
    at_once: int = 16
    timeout: float = 600.0
    tries: int = 6
    pause: float = 1.0

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        limits: Sequence[int],
        generation_kwargs: Mapping[str, Any] = MappingProxyType({}),
    ) -> Iterator[Mapping[int, Completion]]:
        """Completions as they come, by the index of the prompt. Other settings than ``sampling`` are not sent.

        Raises:
            ServerError: a prompt got no answer; what the others got was given before.
        """
        given_up = threading.Event()
        common = {"model": self._model(given_up), **_settings(sampling)}
        texts = [prompt_text(prompt, self.tokenizer) for prompt in prompts]
        failure: BaseException | None = None
        with ThreadPoolExecutor(self.at_once) as pool:
            asked = {}
            for i, prompt in enumerate(prompts):
                seed = int(key_of(prompt)[:7], 16)
                request = {**common, "prompt": texts[i], "max_tokens": limits[i], "seed": seed}
                asked[pool.submit(self._complete, request, given_up)] = i
            try:
                for answer in as_completed(asked):
                    error = answer.exception()
                    if error is None:
                        i = asked[answer]
                        yield {i: self._completion(texts[i], answer.result(), limits[i])}
                    elif not isinstance(error, CancelledError):
                        failure = failure or error
            finally:
                given_up.set()
        if failure is not None:
            raise failure

    def _completion(self, prompt: str, answer: tuple[str, bool], limit: int) -> Completion:
        text, finished = answer
        ids = completion_ids(prompt, text, self.tokenizer)
        if not finished or len(ids) >= limit:  # the tokens of a text may be more than the model took to write it
            return Completion(ids[:limit], finished=False)
        end = self.tokenizer.eos_token_id
        return Completion(ids if ids[-1:] == [end] else [*ids, end], finished=True)

    def _model(self, given_up: threading.Event) -> str:
        """What the server calls the model."""
        served = self._persist(self._served, given_up)
        if self.name in served or not served:
            return self.name
        if len(served) == 1:
            return served[0]
        raise ServerError(
            f"the server at {self.url} has the models {', '.join(served)}, and none is called {self.name!r}: "
            "start it with that name (vllm: --served-model-name)"
        )

    def _served(self) -> list[str]:
        """The models that the server names; none where it does not name any."""
        answer = self._ask("models")
        return [str(model["id"]) for model in answer["data"]] if answer else []

    def _complete(self, request: Mapping[str, Any], given_up: threading.Event) -> tuple[str, bool]:
        """The text, and whether the model had finished. Where one prompt gets no answer, no further one is sent."""
        try:
            return self._persist(lambda: self._completed(request), given_up)
        except BaseException:
            given_up.set()
            raise

    def _completed(self, request: Mapping[str, Any]) -> tuple[str, bool]:
        choice = self._ask("completions", request)["choices"][0]
        text, reason = choice["text"], choice["finish_reason"]
        text.encode()  # half of a surrogate pair is no text
        if reason not in ("stop", "length"):
            raise ValueError(f"finish_reason is {reason!r}")
        return text, reason == "stop"

    def _persist(self, ask: Callable[[], T], given_up: threading.Event) -> T:
        """What ``ask`` gives, at the latest the last time it may be tried."""
        why = ""
        for attempt in range(self.tries):
            if given_up.wait(self.pause * 2 ** (attempt - 1) if attempt else 0):
                raise CancelledError
            try:
                return ask()
            except _AgainError as error:
                why = str(error)
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                why = f"it answers what is not the protocol: {type(error).__name__}: {error}"
            logger.info("abkd: the server at %s: %s", self.url, why)
        raise ServerError(
            f"the server at {self.url} gave no answer in {self.tries} tries: {why}. What the teacher wrote until now "
            "is kept; when the server is well again, start the same again and it goes on from there"
        )

    def _ask(self, what: str, request: Mapping[str, Any] | None = None) -> Any:
        """The JSON of an answer; None where the server does not know the question.

        Raises:
            _AgainError: another try may help.
            ServerError: the server refuses, and will again.
        """
        import requests

        url = f"{self.url.rstrip('/').removesuffix('/v1')}/v1/{what}"
        method = "GET" if request is None else "POST"
        try:
            answer = requests.request(method, url, json=request, timeout=self.timeout)
        except (requests.ConnectionError, requests.Timeout) as error:
            raise _AgainError(f"{type(error).__name__}: {error}") from error
        except requests.RequestException as error:
            raise ServerError(f"teacher_model_server_url: {self.url} cannot be asked: {error}") from error
        if answer.status_code == _TOO_BUSY or answer.status_code >= _BROKEN:
            raise _AgainError(f"status {answer.status_code}: {_short(answer.text)}")
        if request is None and answer.status_code in _NO_SUCH_PATH:
            return None
        if not answer.ok:
            raise ServerError(
                f"the server at {self.url} refuses {what}: status {answer.status_code}: {_short(answer.text)}"
            )
        return answer.json()


def _settings(sampling: Sampling) -> dict[str, Any]:
    chosen = {"temperature": sampling.temperature, "top_p": sampling.top_p, "n": 1, "stream": False}
    return {**chosen, "top_k": sampling.top_k} if sampling.top_k else chosen  # not every server knows it


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:197]}…"
