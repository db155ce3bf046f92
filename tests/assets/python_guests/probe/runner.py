"""Every interface of the world alga:extension/runner."""

from wit_world.imports import (
    clients,
    context,
    http,
    invoicing,
    logging,
    scheduler,
    secrets,
    services,
    storage,
    ui_proxy,
    user,
    user_v2,
)

INTERFACES = {
    "alga:extension/clients": clients,
    "alga:extension/context": context,
    "alga:extension/http": http,
    "alga:extension/invoicing": invoicing,
    "alga:extension/logging": logging,
    "alga:extension/scheduler": scheduler,
    "alga:extension/secrets": secrets,
    "alga:extension/services": services,
    "alga:extension/storage": storage,
    "alga:extension/ui-proxy": ui_proxy,
    "alga:extension/user": user,
    "alga:extension/user-v2": user_v2,
}
