"""secrets.get and list-keys without anything behind them, the platform's key, and what is hidden in what a call leaves behind."""

from __future__ import annotations

import json
import time
from base64 import b64encode, urlsafe_b64encode
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from extrunner.worker.v1 import worker_pb2
from registry.domain.ids import InstallId, TenantId
from registry.domain.limits import OPERATOR_DEFAULTS
from registry.services.secret_reading import SecretCase, SecretRefusalError
from runnerd.capabilities.handlers import function_named
from runnerd.capabilities.platform.api_keys import SecretApiKeys
from runnerd.capabilities.platform.client import PlatformError
from runnerd.capabilities.redaction import HIDDEN, LEAST_CHARACTERS, MOST_SECONDS, RevealedValues
from runnerd.capabilities.results import failed, succeeded
from runnerd.capabilities.secrets import InstallSecrets, secrets_handlers
from runnerd.dispatch.calls import CallTable, FinishedCall
from runnerd.dispatch.outcome import GuestError, TrapKind, Trapped
from runnerd.dispatch.verdict import Measured, WorkerInternalError, judge
from runnerd.worker.frames import Frame, FrameKind
from tests.fakes.capabilities import INSTALL, grant_of, make_broker, make_grant

GET = function_named("alga:extension/secrets", "get")
LIST = function_named("alga:extension/secrets", "list-keys")
VALUE = 's3cr3t "value"/+ä?'


class Sealed:
    """Secrets in a dictionary."""

    def __init__(self, **values: str | SecretCase) -> None:
        self.values = values
        self.asked: list[tuple[str, str, str]] = []

    async def read(self, tenant_id: TenantId, install_id: InstallId, name: str) -> str:
        self.asked.append((tenant_id, install_id, name))
        found = self.values.get(name, SecretCase.MISSING)
        if isinstance(found, SecretCase):
            raise SecretRefusalError(found, "as the test says")
        return found

    async def names(self, tenant_id: TenantId, install_id: InstallId) -> tuple[str, ...]:
        self.asked.append((tenant_id, install_id, "*"))
        if SecretCase.INTERNAL in self.values.values():
            raise SecretRefusalError(SecretCase.INTERNAL, "away")
        return tuple(sorted(self.values))


async def test_get__of_the_grants_install_and_hidden_from_then_on() -> None:
    sealed = Sealed(api_key=VALUE)
    grant = make_grant()
    assert grant.revealed.hide(VALUE) == VALUE
    broker = make_broker(secrets_handlers(InstallSecrets(sealed)))
    assert await broker.call(grant, GET, ("api_key",)) == succeeded(VALUE)
    assert sealed.asked == [("tenant-a", INSTALL, "api_key")]
    assert grant.revealed.hide(f"key: {VALUE}.") == f"key: {HIDDEN}."
    # Another invocation of the same install was given nothing.
    assert make_grant().revealed.hide(VALUE) == VALUE
    assert await broker.call(grant, LIST, ()) == succeeded(["api_key"])


@pytest.mark.parametrize("case", SecretCase)
async def test_refused__in_the_guests_words(case: SecretCase) -> None:
    broker = make_broker(secrets_handlers(InstallSecrets(Sealed(name=case))))
    assert await broker.call(make_grant(), GET, ("name",)) == failed(case)


async def test_not_granted__nothing_is_touched() -> None:
    sealed = Sealed(api_key=VALUE)
    broker = make_broker(secrets_handlers(InstallSecrets(sealed)))
    result = await broker.call(grant_of("storage.kv"), GET, ("api_key",))
    assert (result.error, result.denial is not None) == ("denied", True)
    assert (await broker.call(grant_of("storage.kv"), LIST, ())).value == []
    assert sealed.asked == []


async def test_list_keys__registry_away__empty() -> None:
    broker = make_broker(secrets_handlers(InstallSecrets(Sealed(name=SecretCase.INTERNAL))))
    assert await broker.call(make_grant(), LIST, ()) == succeeded([])


async def test_platforms_key__found_missing_or_withheld() -> None:
    grant = make_grant()
    assert await SecretApiKeys(InstallSecrets(Sealed(api_key="key-1"))).find(grant) == "key-1"
    assert await SecretApiKeys(InstallSecrets(Sealed())).find(grant) is None
    for case in (SecretCase.EXPIRED, SecretCase.INTERNAL):
        with pytest.raises(PlatformError, match="not given"):
            await SecretApiKeys(InstallSecrets(Sealed(api_key=case))).find(grant)


class TestHiding:
    @pytest.mark.parametrize(
        "written",
        [
            VALUE,
            json.dumps(VALUE),
            json.dumps(VALUE, ensure_ascii=False),
            quote(VALUE, safe=""),
            quote(VALUE),
            quote_plus(VALUE),
            b64encode(VALUE.encode()).decode(),
            urlsafe_b64encode(VALUE.encode()).decode(),
            "Basic " + b64encode(f"user:{VALUE}".encode()).decode(),
            b64encode(f"us:{VALUE}:rest".encode()).decode(),
        ],
    )
    def test_written_otherwise__recognised(self, written: str) -> None:
        revealed = RevealedValues()
        revealed.add(VALUE)
        hidden = revealed.hide(f"before {written} after")
        assert hidden.startswith("before ")
        assert hidden.endswith(" after")
        assert HIDDEN in hidden
        # Of base64 at most the characters that also hold bits of its neighbours are left.
        rest = hidden.replace(HIDDEN, "").removeprefix("before ").removesuffix(" after")
        assert len(rest) <= len("Basic ") + 14

    @pytest.mark.parametrize("written", [VALUE[::-1], " ".join(VALUE), VALUE.encode().hex(), VALUE.upper()])
    def test_written_to_deceive__left_as_documented(self, written: str) -> None:
        revealed = RevealedValues()
        revealed.add(VALUE)
        assert revealed.hide(written) == written

    def test_short_values__do_not_eat_the_log(self) -> None:
        revealed = RevealedValues()
        for value in ("", "a", "12345"):
            revealed.add(value)
        assert revealed.hide("a line of 12345 letters") == "a line of 12345 letters"
        revealed.add("123456")
        assert revealed.hide("123456") == HIDDEN

    def test_lines_of_a_key__one_by_one(self) -> None:
        revealed = RevealedValues()
        revealed.add("-----BEGIN KEY-----\nMIIEvQIBADANBg\nkqhkiG9w0BAQEF\n-----END KEY-----\n")
        assert revealed.hide("kqhkiG9w0BAQEF") == HIDDEN
        assert revealed.hide("at MIIEvQIBADANBg, kqhkiG9w0BAQEF") == f"at {HIDDEN}, {HIDDEN}"

    def test_longer_first__no_rest_of_a_longer_one(self) -> None:
        revealed = RevealedValues()
        revealed.add("abcdef")
        revealed.add("abcdef-and-more")
        assert revealed.hide("abcdef-and-more") == HIDDEN

    @settings(max_examples=200, deadline=None)
    @given(st.text(min_size=LEAST_CHARACTERS, max_size=40), st.text(max_size=20), st.integers(min_value=0, max_value=40))
    @example("aaaaaaa", "aaaaaa", 3)
    @example(HIDDEN, "", 0)
    def test_any_value__cut_anywhere__is_not_left_whole(self, value: str, before: str, cut: int) -> None:
        revealed = RevealedValues()
        revealed.add(value)
        assert value not in revealed.hide(f"{before}{value}").replace(HIDDEN, "")
        beginning = value[: max(LEAST_CHARACTERS, min(cut, len(value)))]
        assert not revealed.hide(f"{before}|{beginning}").replace(HIDDEN, "").endswith(f"|{beginning}")

    def test_many_large_values__bounded_work(self) -> None:
        revealed = RevealedValues()
        for number in range(64):
            revealed.add("\n".join(f"{number}-{line}-" + "x" * 900 for line in range(64)))
        began = time.process_time()
        assert revealed.hide("a harmless line of a log") == "a harmless line of a log"
        revealed.hide("y" * 8192)
        # A guard against work that grows with the product of them all; usually a fraction of it.
        assert time.process_time() - began < 20

    def test_values_and_lines_made_for_each_other__cost_what_one_invocation_may__and_then_everything_is_hidden(self) -> None:
        revealed = RevealedValues()
        for number in range(64):
            # Every place of such a line is the beginning of such a value, but for what comes last.
            revealed.add("\n".join("a" * (900 + line) + chr(0x100 + number) for line in range(64)))
        line = "a" * 8191 + "c"
        began = time.thread_time()
        lines = [revealed.hide(line) for _ in range(1_000)]
        # What one line and the making of the forms take comes on top; a guard, not a measurement.
        assert time.thread_time() - began < 20 * MOST_SECONDS
        assert lines[-1] == HIDDEN
        assert all("a" * 900 not in shown for shown in lines)
        assert RevealedValues().hide(line) == line

    def test_values_that_come_one_by_one__all_are_hidden(self) -> None:
        revealed = RevealedValues()
        for number in range(64):
            revealed.add(f"value-{number}-of-many")
            assert revealed.hide(f"value-0-of-many, value-{number}-of-many.") == f"{HIDDEN}, {HIDDEN}."


class TestWhatACallLeaves:
    async def test_log_lines__hidden_as_they_arrive(self) -> None:
        grant = make_grant()
        table = CallTable()
        call = table.open(grant=grant, limits=OPERATOR_DEFAULTS, deadline=grant.deadline)
        call.started = True

        def say(message: str) -> None:
            log = worker_pb2.Log(lines=[worker_pb2.LogLine(level="info", message=message)])
            table.on_frame(Frame(kind=FrameKind.LOG, call_id=call.call_id, payload=log.SerializeToString()))

        say("about to ask")
        grant.revealed.add(VALUE)
        say(f"got {VALUE}")
        say(f"authorization: Basic {b64encode(VALUE.encode()).decode()}")
        assert [line["message"] for line in call.notes.log][:2] == ["about to ask", f"got {HIDDEN}"]
        assert call.notes.log[2]["message"].startswith(f"authorization: Basic {HIDDEN}")

    def test_messages__of_traps_and_guest_errors(self) -> None:
        revealed = RevealedValues()
        revealed.add(VALUE)
        measured = Measured(wall_us=1, queue_us=0, host_calls=0, egress_request_bytes=0, egress_response_bytes=0, late=False)
        text = f"panicked at {VALUE}"
        outcomes = [
            judge(FinishedCall(done=done, body=None), OPERATOR_DEFAULTS, measured, hide=revealed.hide)
            for done in (
                worker_pb2.Done(guest_error=text),
                worker_pb2.Done(trapped=worker_pb2.GuestTrap(kind=TrapKind.UNREACHABLE, message=text)),
            )
        ]
        assert [outcome.message for outcome in outcomes if isinstance(outcome, GuestError | Trapped)] == [f"panicked at {HIDDEN}"] * 2
        with pytest.raises(WorkerInternalError) as caught:
            judge(FinishedCall(done=worker_pb2.Done(internal_error=text), body=None), OPERATOR_DEFAULTS, measured, hide=revealed.hide)
        assert VALUE not in str(caught.value)
