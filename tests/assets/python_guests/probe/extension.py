"""Every interface of the world extrunner:host/extension."""

from runner import INTERFACES as OF_RUNNER
from wit_world.imports import config, events, kv, metrics

INTERFACES = OF_RUNNER | {
    "extrunner:host/config": config,
    "extrunner:host/events": events,
    "extrunner:host/kv": kv,
    "extrunner:host/metrics": metrics,
}
