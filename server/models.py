"""The models that clients may name, and the engines behind them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version

import msgspec

from inference.engine import Engine
from inference.errors import EngineUnavailable
from inference.fleet import Fleet
from inference.leases import Lease
from inference.requests import SamplingParams
from inference.status import EngineStats, ModelInfo
from server.errors import ApiError

FINGERPRINT_CHARS = 12
VERSION = version("headrace")
"""Read once: to find and parse it takes longer than the rest of what begins a request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """One model under its id and its aliases.

    `created` is a Unix time in seconds. `sampling` holds what the model's makers
    recommend, for requests that leave a field out; it is checked on construction and
    raises `msgspec.ValidationError`. `shortest_vector` is how short its embeddings may be
    cut, None where they may not.
    """

    id: str
    aliases: tuple[str, ...] = ("default",)
    created: int = field(default_factory=lambda: int(time.time()))
    sampling: Mapping[str, float | int] = field(default_factory=dict)
    shortest_vector: int | None = None

    def __post_init__(self) -> None:
        """Refuse recommendations that are unknown or out of range."""
        msgspec.convert(dict(self.sampling), SamplingParams)

    @property
    def names(self) -> tuple[str, ...]:
        """Every name a request may use, the id first."""
        return (self.id, *(alias for alias in self.aliases if alias != self.id))


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A model together with the fleet that loads it: what routes work with."""

    model: ServedModel
    fleet: Fleet

    @property
    def id(self) -> str:
        """The model's id, whatever name it was asked for by."""
        return self.model.id

    @property
    def known(self) -> bool:
        """Whether `info` can be told: always, once the model was loaded for the first time."""
        return self.fleet.info(self.id) is not None

    @property
    def info(self) -> ModelInfo:
        """What the model is, loaded now or not. Raises `EngineUnavailable` unless `known`."""
        info = self.fleet.info(self.id)
        if info is not None:
            return info
        if self.id == self.fleet.default_id:
            return self.fleet.default.info  # which says what it is waiting for
        raise EngineUnavailable("The model is not loaded yet.")

    def lease(self) -> Lease:
        """Leave to use the model, held as long as anything runs on it."""
        return self.fleet.lease(self.id)

    def stats(self) -> EngineStats:
        """Its engine's latest snapshot; zeros while it is not loaded."""
        engine = self.fleet.engine(self.id)
        return EngineStats() if engine is None else engine.stats()

    def fingerprint(self) -> str:
        """OpenAI's `system_fingerprint`: the same while model and server are the same.

        Raises `EngineUnavailable` unless the model is `known`.
        """
        info = self.info
        parts = (VERSION, info.id, info.description, info.engine, info.layout)
        digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
        return f"fp_{digest[:FINGERPRINT_CHARS]}"


class Models:
    """All models of a server, by any of their names. Immutable; the fleet is what changes."""

    def __init__(
        self, fleet: Fleet, default: ServedModel, others: Iterable[ServedModel] = ()
    ) -> None:
        """`default` is the fleet's own default. Raises `ValueError` for a name given twice."""
        self.fleet = fleet
        self.all = tuple(Served(model=model, fleet=fleet) for model in (default, *others))
        self.default = self.all[0]
        self._by_name: dict[str, Served] = {}
        for served in self.all:
            for name in served.model.names:
                if name in self._by_name:
                    raise ValueError(f"two models are called {name}")
                self._by_name[name] = served

    @classmethod
    def alone(cls, engine: Engine, model: ServedModel) -> Models:
        """One model, which is there from the start."""
        return cls(Fleet(model.id, engine), model)

    @property
    def names(self) -> tuple[str, ...]:
        """Every name a request may use."""
        return tuple(self._by_name)

    def require(self, name: str) -> Served:
        """The model of that name. Raises `ApiError` 404."""
        served = self._by_name.get(name)
        if served is None:
            raise ApiError(
                404,
                "model_not_found",
                "There is no such model here; GET /v1/models lists the names.",
                param="model",
            )
        return served
