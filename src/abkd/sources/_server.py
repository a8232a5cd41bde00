"""A teacher behind an OpenAI-compatible server (vLLM and most others): text in, text out."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from abkd.data.text import completion_ids, prompt_text
from abkd.errors import ServerError
from abkd.generation import Completion, Sampling
from abkd.sources._store import key_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("abkd")

T = TypeVar("T")

_NO_SUCH_PATH, _TOO_BUSY, _BROKEN = (404, 405), 429, 500


class _RetryableError(Exception):
    """The request may succeed if it is sent again."""


@dataclass(frozen=True)
class Server:
    """Generates the teacher's text through ``POST /v1/completions``, several prompts concurrently.

    The prompt is sent as text, without the tokens that the server's tokenizer adds in front (BOS). The answer is
    tokenised like the completion of a data row, and gets EOS if the server reports that the model finished.

    Args:
        url: URL of the server, with or without ``/v1``.
        name: the teacher's name; if the server has a single model, that model is used under any name.
        tokenizer: the student's.
        at_once: number of concurrent requests.
        timeout: seconds without an answer after which a request has failed.
        tries: attempts per prompt before an error is raised.
        pause: seconds before the second attempt; doubled before each further one.
    """

    url: str
    name: str
    tokenizer: PreTrainedTokenizerBase
    at_once: int = 16
    timeout: float = 600.0
    tries: int = 6
    pause: float = 1.0

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        limits: Sequence[int],
        generation_kwargs: Mapping[str, object] = MappingProxyType({}),
    ) -> Iterator[Mapping[int, Completion]]:
        """Yield completions as they arrive, by the index of the prompt. Only the settings in ``sampling`` are sent.

        Raises:
            ServerError: a prompt got no answer; the answers to others were yielded before.
        """
        given_up = threading.Event()
        common = {"model": self._model(given_up), **_settings(sampling)}
        texts = [prompt_text(prompt, self.tokenizer) for prompt in prompts]
        failure: BaseException | None = None
        with ThreadPoolExecutor(self.at_once) as pool:
            pending = {}
            for i, prompt in enumerate(prompts):
                seed = int(key_of(prompt)[:7], 16)
                request = {**common, "prompt": texts[i], "max_tokens": limits[i], "seed": seed}
                pending[pool.submit(self._complete, request, given_up)] = i
            try:
                for answer in as_completed(pending):
                    error = answer.exception()
                    if error is None:
                        i = pending[answer]
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
        if not finished or len(ids) >= limit:  # tokenised again, it may have more tokens than the model used
            return Completion(ids[:limit], finished=False)
        end: Any = self.tokenizer.eos_token_id  # an integer, which its stub does not say
        return Completion(ids if ids[-1:] == [end] else [*ids, end], finished=True)

    def _model(self, given_up: threading.Event) -> str:
        """The server's name for the model."""
        served = self._persist(self._served, given_up)
        if self.name in served or not served:
            return self.name
        if len(served) == 1:
            return served[0]
        raise ServerError(
            f"the server at {self.url} has the models {', '.join(served)}, but none is called {self.name!r}: "
            "start it with that name (vllm: --served-model-name)"
        )

    def _served(self) -> list[str]:
        """The models that the server lists; empty if it lists none."""
        answer = self._ask("models")
        return [str(model["id"]) for model in answer["data"]] if answer else []

    def _complete(self, request: Mapping[str, object], given_up: threading.Event) -> tuple[str, bool]:
        """The text, and whether the model finished. After a failure, no further prompts are sent."""
        try:
            return self._persist(lambda: self._completed(request), given_up)
        except BaseException:
            given_up.set()
            raise

    def _completed(self, request: Mapping[str, object]) -> tuple[str, bool]:
        choice = self._ask("completions", request)["choices"][0]
        text, reason = choice["text"], choice["finish_reason"]
        text.encode()  # raises on a lone surrogate
        if reason not in ("stop", "length"):
            raise ValueError(f"finish_reason is {reason!r}")
        return text, reason == "stop"

    def _persist(self, ask: Callable[[], T], given_up: threading.Event) -> T:
        """The result of ``ask``, which is called up to ``tries`` times."""
        why = ""
        for attempt in range(self.tries):
            if given_up.wait(self.pause * 2 ** (attempt - 1) if attempt else 0):
                raise CancelledError
            try:
                return ask()
            except _RetryableError as error:
                why = str(error)
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                why = f"its answer does not follow the protocol: {type(error).__name__}: {error}"
            logger.info("abkd: the server at %s: %s", self.url, why)
        raise ServerError(
            f"the server at {self.url} gave no answer in {self.tries} attempts: {why}. The teacher's text so far is "
            "kept; once the server works again, run the same command to continue"
        )

    def _ask(self, what: str, request: Mapping[str, Any] | None = None) -> Any:
        """The JSON of an answer; None if the server does not have the endpoint.

        Raises:
            _RetryableError: another attempt may succeed.
            ServerError: the server rejects the request, and would again.
        """
        import requests

        url = f"{self.url.rstrip('/').removesuffix('/v1')}/v1/{what}"
        method = "GET" if request is None else "POST"
        try:
            answer = requests.request(method, url, json=request, timeout=self.timeout)
        except (requests.ConnectionError, requests.Timeout) as error:
            raise _RetryableError(f"{type(error).__name__}: {error}") from error
        except requests.RequestException as error:
            raise ServerError(f"teacher_model_server_url: cannot send a request to {self.url}: {error}") from error
        if answer.status_code == _TOO_BUSY or answer.status_code >= _BROKEN:
            raise _RetryableError(f"status {answer.status_code}: {_short(answer.text)}")
        if request is None and answer.status_code in _NO_SUCH_PATH:
            return None
        if not answer.ok:
            raise ServerError(
                f"the server at {self.url} rejects {what}: status {answer.status_code}: {_short(answer.text)}"
            )
        return answer.json()


def _settings(sampling: Sampling) -> dict[str, object]:
    chosen = {"temperature": sampling.temperature, "top_p": sampling.top_p, "n": 1, "stream": False}
    return {**chosen, "top_k": sampling.top_k} if sampling.top_k else chosen  # not every server supports it


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:197]}…"
