"""Keys for secrets, and what seals and opens with them."""

from __future__ import annotations

from pathlib import Path

from registry.domain.ids import InstallId, TenantId
from registry.secrets.binding import Binding
from registry.secrets.local_keys import GeneratedKeyPair, LocalUnwrapper, LocalWrapper, generate_key_pair
from registry.secrets.opening import Opener
from registry.secrets.sealing import Sealer

PLACE = Binding(tenant_id=TenantId("tenant-a"), install_id=InstallId("0197a000-0000-7000-8000-00000000000a"), name="api_key", version=1)


def make_pair(folder: Path, name: str = "pair", *, development: bool = False) -> GeneratedKeyPair:
    (folder / name).mkdir()
    return generate_key_pair(folder / name, development=development)


def sealer_of(pair: GeneratedKeyPair) -> Sealer:
    return Sealer(LocalWrapper(pair.public_file, refuse_development_keys=False))


def opener_of(*pairs: GeneratedKeyPair) -> Opener:
    return Opener([LocalUnwrapper([pair.private_file for pair in pairs], refuse_development_keys=False)])
