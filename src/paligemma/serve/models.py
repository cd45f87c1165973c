"""The models of a server by name: loaded when first asked for, kept within a bound in bytes."""

from __future__ import annotations

import asyncio
import difflib
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from paligemma.errors import ConfigError, PaliGemmaError
from paligemma.generate import QueueOptions
from paligemma.kernels.packed_layers import packed_weights
from paligemma.pipeline.engine_queue import EngineQueue
from paligemma.pipeline.paligemma import PaliGemma
from paligemma.serve.errors import ServeError
from paligemma.serve.options import ServerOptions

logger = logging.getLogger(__name__)

_RETRY_S = 30  # a model that did not load is tried again after this time


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model that the server offers.

    Attributes:
        name: by which requests name it.
        load: loads it, with its adapters.
        adapters: served name -> name among the model's adapters; each is offered as a model.
        quant: as the user named it.
    """

    name: str
    load: Callable[[], PaliGemma]
    adapters: Mapping[str, str] = field(default_factory=dict)
    quant: str | None = None


@dataclass(eq=False)
class Loaded:
    """A model in memory; the queue belongs to the worker's thread."""

    name: str
    model: PaliGemma
    max_pixels: int
    num_users: int = 0
    queue: EngineQueue = field(init=False)
    num_bytes: int = field(init=False)
    num_parameters: int = field(init=False)

    def __post_init__(self) -> None:
        self.queue = self.new_queue()
        processor = self.model.processor
        lowest = min(self.max_pixels, processor.reader.max_pixels)
        reader = replace(processor.reader, max_pixels=lowest, allow_video=False)
        processor.reader = reader
        tensors = (*self.model.model.parameters(), *self.model.model.buffers())
        packed = packed_weights(self.model.model).values()
        self.num_bytes = sum(one.nbytes for one in tensors)
        self.num_parameters = sum(one.numel() for one in self.model.model.parameters())
        self.num_parameters += sum(one.n * one.k for one in packed)

    def new_queue(self) -> EngineQueue:
        """An empty queue. The worker bounds what it is given, so it bounds no waiting pictures."""
        dtype = self.model.settings.kv_cache_dtype
        options = QueueOptions(kv_cache_dtype=dtype, max_waiting_bytes=1 << 62)
        return EngineQueue(self.model.engine, options)


@dataclass(frozen=True, kw_only=True)
class Lease:
    """A loaded model, kept as long as the lease; and the adapter that its name stands for."""

    name: str
    loaded: Loaded
    adapter: str | None

    @property
    def model(self) -> PaliGemma:
        return self.loaded.model


class Models:
    """Offers models by name; for the thread of the loop.

    Args:
        specs: the first is the default.
        options: of their bounds, that of the weights which are kept (those in use stay), and that
            of a picture.
    """

    def __init__(self, specs: Sequence[ModelSpec], options: ServerOptions) -> None:
        self.specs = {spec.name: spec for spec in specs}
        self.default = specs[0].name
        self._max_bytes, self._max_pixels = options.max_model_bytes, options.max_pixels
        self._names: dict[str, tuple[ModelSpec, str | None]] = {}
        for spec in specs:
            for name, adapter in [(spec.name, None), *spec.adapters.items()]:
                if name in self._names:
                    raise ConfigError(
                        f"every model and adapter needs a name of its own, got {name!r:.100} twice"
                    )
                self._names[name] = spec, adapter
        self._loaded: OrderedDict[str, Loaded] = OrderedDict()
        self._sizes: dict[str, int] = {}  # of all that were ever loaded
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._failed: dict[str, float] = {}  # when a model did not load
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="loader")

    @property
    def names(self) -> tuple[str, ...]:
        """Of models and adapters."""
        return tuple(self._names)

    def spec(self, name: str) -> tuple[ModelSpec, str | None]:
        """The model of a name and its adapter; ServeError 404 where there is none."""
        if name not in self._names:
            near = difflib.get_close_matches(name, self._names, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; use {', '.join(self.names)[:300]}"
            raise ServeError(
                f"this server has no model {name!r:.100}{hint}",
                status=404,
                code="model_not_found",
                param="model",
            )
        return self._names[name]

    @property
    def in_memory(self) -> tuple[Loaded, ...]:
        """The models that are loaded now."""
        return tuple(self._loaded.values())

    def loaded(self, name: str) -> Loaded | None:
        """The model of a name if it is in memory."""
        return self._loaded.get(self.spec(name)[0].name)

    def load_default(self) -> None:
        """Load the default model now, in this thread, before the server starts."""
        self._keep(self.default, self.specs[self.default].load())

    @asynccontextmanager
    async def lease(self, name: str | None) -> AsyncIterator[Lease]:
        """A model while it is used, loaded first where it is not; None is the default.

        Raises:
            ServeError: there is no such model, or it does not load; its cause is then why.
        """
        name = self.default if name is None else name
        spec, adapter = self.spec(name)
        while (loaded := self._loaded.get(spec.name)) is None:
            await self._wait_for(spec)
        self._loaded.move_to_end(spec.name)
        loaded.num_users += 1
        try:
            yield Lease(name=name, loaded=loaded, adapter=adapter)
        finally:
            loaded.num_users -= 1
            self._evict(0)

    async def _wait_for(self, spec: ModelSpec) -> None:
        """Load a model, or wait until it is loaded for another request."""
        left = self._failed.get(spec.name, -_RETRY_S) + _RETRY_S - time.monotonic()
        if left > 0:
            raise _not_loaded(spec.name, int(left) + 1)
        task = self._loading.get(spec.name)
        if task is None:
            task = self._loading[spec.name] = asyncio.ensure_future(self._load(spec))
            task.add_done_callback(lambda done: self._end_loading(spec.name, done))
        try:
            await asyncio.shield(task)  # others wait for it too, and later ones will
        except Exception as error:
            raise _not_loaded(spec.name, _RETRY_S) from error

    async def _load(self, spec: ModelSpec) -> None:
        logger.info("loading %s", spec.name)
        self._evict(self._sizes.get(spec.name, 0))
        model = await asyncio.get_running_loop().run_in_executor(self._loader, spec.load)
        self._keep(spec.name, model)

    def _end_loading(self, name: str, done: asyncio.Task[None]) -> None:
        del self._loading[name]
        error = None if done.cancelled() else done.exception()
        if error is not None:
            self._failed[name] = time.monotonic()
            is_ours = isinstance(error, PaliGemmaError)
            logger.error("%s does not load: %s", name, error, exc_info=None if is_ours else error)

    def _keep(self, name: str, model: PaliGemma) -> None:
        self._loaded[name] = loaded = Loaded(name, model, self._max_pixels)
        self._sizes[name] = loaded.num_bytes
        logger.info("loaded %s, %.1f GB", name, loaded.num_bytes / 1e9)
        loaded.num_users += 1
        self._evict(0)
        loaded.num_users -= 1

    def _evict(self, num_bytes: int) -> None:
        """Forget models that nobody uses, the longest unused first, until there is room for so many
        bytes more."""
        held = num_bytes + sum(one.num_bytes for one in self._loaded.values())
        for name, one in list(self._loaded.items()):
            if held <= self._max_bytes:
                return
            if one.num_users == 0 and (num_bytes or len(self._loaded) > 1):
                logger.info("forgetting %s", name)
                held -= one.num_bytes
                del self._loaded[name]

    def close(self) -> None:
        """Stop the thread that loads."""
        self._loader.shutdown(wait=False, cancel_futures=True)


def _not_loaded(name: str, retry_after_s: int) -> ServeError:
    """The error of a request for a model that does not load; why, is for the server's owner."""
    return ServeError(
        f"the model {name!r:.100} does not load here, the server's log says why; use another, or "
        f"try again in {retry_after_s} s",
        status=503,
        code="model_not_loaded",
        param="model",
        retry_after_s=retry_after_s,
    )
