"""The models of a server by name: loaded when first asked for, kept within a bound in bytes."""

from __future__ import annotations

import asyncio
import difflib
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from paligemma.pipeline.engine_queue import EngineQueue
from paligemma.pipeline.paligemma import PaliGemma
from paligemma.serve.errors import ServeError

logger = logging.getLogger(__name__)


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

    model: PaliGemma
    queue: EngineQueue
    num_users: int = 0

    @property
    def num_bytes(self) -> int:
        """Of parameters and buffers."""
        tensors = (*self.model.model.parameters(), *self.model.model.buffers())
        return sum(tensor.nbytes for tensor in tensors)


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
    """Offers models by name.

    Args:
        specs: the first is the default.
        max_bytes: bound of the weights of all that are kept; one that is in use stays.
    """

    def __init__(self, specs: Sequence[ModelSpec], max_bytes: int) -> None:
        self.specs = {spec.name: spec for spec in specs}
        self.default = specs[0].name
        self._max_bytes = max_bytes
        self._names: dict[str, tuple[ModelSpec, str | None]] = {}
        for spec in specs:
            self._names[spec.name] = spec, None
            self._names |= {served: (spec, own) for served, own in spec.adapters.items()}
        self._loaded: OrderedDict[str, Loaded] = OrderedDict()
        self._loading: dict[str, asyncio.Lock] = {}
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

    def loaded(self, name: str) -> Loaded | None:
        """The model of a name if it is in memory."""
        return self._loaded.get(self.spec(name)[0].name)

    @asynccontextmanager
    async def lease(self, name: str | None) -> AsyncIterator[Lease]:
        """A model while it is used, loaded first where it is not; None is the default.

        Raises:
            ServeError: there is no such model.
            PaliGemmaError: it does not load.
        """
        name = self.default if name is None else name
        spec, adapter = self.spec(name)
        async with self._loading.setdefault(spec.name, asyncio.Lock()):
            if spec.name not in self._loaded:
                await self._load(spec)
            loaded = self._loaded[spec.name]
            self._loaded.move_to_end(spec.name)
            loaded.num_users += 1
        try:
            yield Lease(name=name, loaded=loaded, adapter=adapter)
        finally:
            loaded.num_users -= 1
            self._evict()

    async def _load(self, spec: ModelSpec) -> None:
        logger.info("loading %s", spec.name)
        model = await asyncio.get_running_loop().run_in_executor(self._loader, spec.load)
        self._loaded[spec.name] = Loaded(model, EngineQueue(model.engine))
        self._evict(kept=spec.name)

    def _evict(self, kept: str | None = None) -> None:
        """Forget models that nobody uses, the longest unused first, down to the bound."""
        held = sum(one.num_bytes for one in self._loaded.values())
        for name, one in list(self._loaded.items()):
            if held <= self._max_bytes:
                return
            if one.num_users == 0 and name != kept and len(self._loaded) > 1:
                logger.info("forgetting %s", name)
                held -= one.num_bytes
                del self._loaded[name]

    def close(self) -> None:
        """Stop the thread that loads."""
        self._loader.shutdown(wait=False, cancel_futures=True)
