"""Fields of a context that are stored encrypted: where, how small, and how they are read back."""

from __future__ import annotations

import hmac
import os
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest

from sagaz_core import Recording, ReplayConfig, Saga, SagaReplay, SagaTimeTravel
from sagaz_core.encryption import Encrypted, FieldCipher
from sagaz_core.engine.fields import EncryptedFields
from sagaz_core.errors import CannotStoreError, EncryptedValueError, UsageError
from sagaz_core.storage.codec import decode, encode
from sagaz_core.storage.frames import state_bytes
from sagaz_core.storage.jsonform import from_json, to_json
from sagaz_core.storage.records import unpack_state
from sagaz_core.storage.seals import opened
from sagaz_core.storage.url import open_storage
from sagaz_core.virtual_time import run

if TYPE_CHECKING:
    from pathlib import Path

CARD, TOKEN = "4000-1234-5678-9010", "tok-secret-token"


class Cipher:
    """Encrypts with a fresh nonce each time, and counts. For tests: nobody checked it."""

    def __init__(self, secret: bytes = b"secret") -> None:
        self._secret = secret
        self.asked: list[tuple[str, Any]] = []

    def encrypt(self, key: str, value: bytes) -> bytes:
        self.asked.append((key, decode(value)))
        nonce = os.urandom(12)
        body = self._mixed(nonce, value)
        return nonce + self._tag(key, nonce, body) + body

    def decrypt(self, key: str, data: bytes) -> bytes:
        nonce, tag, body = data[:12], data[12:28], data[28:]
        if tag != self._tag(key, nonce, body):
            raise ValueError("wrong tag")
        return self._mixed(nonce, body)

    def _tag(self, key: str, nonce: bytes, body: bytes) -> bytes:
        return hmac.digest(self._secret, key.encode() + nonce + body, "sha256")[:16]

    def _mixed(self, nonce: bytes, data: bytes) -> bytes:
        blocks = range(len(data) // 32 + 1)
        stream = b"".join(sha256(self._secret + nonce + block.to_bytes(4, "big")).digest() for block in blocks)
        return bytes(one ^ other for one, other in zip(data, stream, strict=False))


def hiding(cipher: FieldCipher | None, *keys: str, **config: Any) -> ReplayConfig:
    return ReplayConfig(encrypt_fields=keys or ("card", "token"), field_cipher=cipher, **config)


class DownError(Exception):
    pass


def order(store: Any, config: ReplayConfig | None, *, failing: bool = False, steps: int = 2) -> Saga[Any]:
    async def tokenize(ctx: Any) -> dict[str, str]:
        assert ctx["card"] == CARD
        return {"token": TOKEN}

    async def forget(ctx: Any, result: Any) -> dict[str, str]:
        assert result == {"token": TOKEN}
        return {"token": f"gone {result['token']}"}

    async def charge(ctx: Any) -> str:
        assert (ctx["card"], ctx["token"]) == (CARD, TOKEN)
        if failing:
            raise DownError(f"declined {CARD[-4:]}")
        return "paid"

    made: Saga[Any] = Saga("order", snapshot_storage=store, replay_config=config)
    made.add_step("tokenize", tokenize, forget).add_step("charge", charge)
    for number in range(steps - 2):
        made.add_step(f"ship{number}", lambda ctx, number=number: {f"parcel{number}": number})
    return made


async def stored(store: Any, saga_id: str = "S") -> tuple[list[Any], list[Any]]:
    """Return the data of events and states, decoded."""
    events = [decode(opened(event)) async for event in store.read_events(saga_id)]
    page = await store.list_snapshots(saga_id)
    return events, [decode(state_bytes(snapshot)) for snapshot in page.items]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/sagas.db"


@pytest.mark.parametrize("failing", [False, True])
@pytest.mark.parametrize("compression", ["zstd", None])
def test_the_value_is_in_no_stored_byte(tmp_path: Path, url: str, failing: bool, compression: Any) -> None:
    store = open_storage(url)
    config = hiding(Cipher(), compression=compression)
    result = run(order(store, config, failing=failing).run({"card": CARD, "sku": "W1"}, saga_id="S"))
    assert result.success is not failing
    replayed = run(
        SagaReplay("S", store, saga_factory=lambda: order(store, config)).from_checkpoint("charge", {"card": CARD})
    )
    assert replayed.context["token"] == TOKEN

    events, states = run(stored(store))
    shown = repr((events, states, run(stored(store, replayed.new_saga_id or ""))))
    assert "W1" in shown
    assert shown.count("'card': <encrypted, ") > 10
    assert CARD not in shown
    assert TOKEN not in shown
    run(store.close())
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert (b"W1" in kept) or compression
    assert CARD.encode() not in kept
    assert TOKEN.encode() not in kept


def test_the_cipher_is_asked_once_for_each_value(url: str) -> None:
    cipher = Cipher()

    async def change(ctx: Any) -> dict[str, str]:
        return {"card": "5000", "token": CARD}

    made = order(open_storage(url), hiding(cipher), steps=8).add_step("change", change)
    run(made.run({"card": CARD}, saga_id="S"))
    assert cipher.asked == [("card", CARD), ("token", TOKEN), ("card", "5000"), ("token", CARD)]


def sizes(url: str, config: ReplayConfig | None) -> list[int]:
    store = open_storage(url)
    run(order(store, config, steps=10).run({"card": CARD}, saga_id="S"))
    return [len(snapshot.data) for snapshot in run(store.list_snapshots("S")).items]


def test_an_unchanged_value_makes_no_further_snapshot_larger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    urls = [f"sqlite:///{tmp_path}/{name}.db" for name in ("plain", "reused", "fresh")]
    plain, reused = sizes(urls[0], None), sizes(urls[1], hiding(Cipher()))
    asked_once = EncryptedFields.of

    def asked_each_time(self: Any, key: str, value: Any) -> Any:
        self._made.clear()
        return asked_once(self, key, value)

    monkeypatch.setattr(EncryptedFields, "of", asked_each_time)
    fresh = sizes(urls[2], hiding(Cipher()))
    # From the fourth on, before which a step has put one number into the context, and nothing else is new.
    sizes_of_each = list(zip(plain, reused, fresh, strict=True))[3:]
    assert all(abs(one - other) <= 24 for one, other, _ in sizes_of_each)  # how what is random compresses: 9 once in 60
    assert all(other > one + 90 for _, one, other in sizes_of_each)  # both values again


def test_a_resumed_saga_is_given_the_values(url: str) -> None:
    store, cipher = open_storage(url), Cipher()
    died = order(store, hiding(cipher))

    class Died(BaseException):
        pass

    async def dies(ctx: Any) -> None:
        raise Died

    died = Saga("order", snapshot_storage=store, replay_config=hiding(cipher))
    died.add_step("tokenize", lambda ctx: {"token": TOKEN}, lambda ctx, result: None).add_step("charge", dies)
    with pytest.raises(Died):
        run(died.run({"card": CARD}, saga_id="S"))
    with pytest.raises(EncryptedValueError, match=r"'card' in saga 'S' is encrypted: give its ReplayConfig a "):
        run(order(store, None).resume("S"))
    with pytest.raises(EncryptedValueError, match=r"cipher cannot read it \(ValueError: wrong tag\)") as raised:
        run(order(store, hiding(Cipher(b"another"))).resume("S"))
    assert raised.value.key == "card"
    result = run(order(store, hiding(cipher)).resume("S"))
    assert result.success
    assert result.context == {"card": CARD, "token": TOKEN}
    assert run(stored(store))[1][-1]["context"].keys() == {"card", "token"}


def test_a_replay_without_the_cipher_needs_the_values(url: str) -> None:
    store = open_storage(url)
    run(order(store, hiding(Cipher())).run({"card": CARD}, saga_id="S"))
    replay = SagaReplay("S", store, saga_factory=lambda: order(store, None))
    with pytest.raises(EncryptedValueError, match="or override it") as raised:
        run(replay.from_checkpoint("charge", {"card": CARD}))
    assert raised.value.key == "token"
    assert run(replay.get_replay_history()) == []
    result = run(replay.from_checkpoint("charge", {"card": CARD, "token": TOKEN}))
    assert result.context == {"card": CARD, "token": TOKEN}
    assert result.result is not None
    assert result.result.results["tokenize"] == {"token": TOKEN}


def test_the_override_of_a_replay_is_logged_encrypted(url: str) -> None:
    store, config = open_storage(url), hiding(Cipher())
    run(order(store, config).run({"card": CARD}, saga_id="S"))
    replay = SagaReplay("S", store, saga_factory=lambda: order(store, config))
    run(replay.from_checkpoint("charge", {"card": CARD, "sku": "W2"}))
    (entry,) = run(replay.get_replay_history())
    override = decode(entry.override)
    assert type(override.pop("card")) is Encrypted
    assert override == {"sku": "W2"}


def test_the_past_shows_that_a_value_is_encrypted(url: str) -> None:
    store = open_storage(url)
    run(order(store, hiding(Cipher())).run({"card": CARD, "sku": "W1"}, saga_id="S"))
    context = run(SagaTimeTravel("S", store).get_context_at("2999-01-01T00:00Z"))
    assert context["sku"] == "W1"
    assert repr(context["card"]) == f"<encrypted, {len(context['card'].data)} bytes>"
    snapshot = run(store.list_snapshots("S")).items[-1]
    assert unpack_state(snapshot).context["card"] == context["card"]


def test_a_recording_keeps_what_is_encrypted_and_pseudonyms_replace_it(url: str, tmp_path: Path) -> None:
    store = open_storage(url)
    run(order(store, hiding(Cipher())).run({"card": CARD, "sku": "W1"}, saga_id="S"))
    recording = run(Recording.from_storage(store, "S"))
    recording.save(tmp_path / "S.json")
    assert Recording.load(tmp_path / "S.json").context == recording.context
    hidden = recording.redacted(["card"], "k").context["card"]
    assert type(hidden) is Encrypted
    assert hidden != recording.context["card"]


def test_a_recording_is_read_with_the_cipher_or_an_override(url: str) -> None:
    store, config = open_storage(url), hiding(Cipher())
    run(order(store, config).run({"card": CARD, "sku": "W1"}, saga_id="S"))
    recording = run(Recording.from_storage(store, "S"))
    assert recording.encrypted
    read = recording.decrypted(config, {})
    assert not read.encrypted
    assert read.state.context == {"card": CARD, "sku": "W1", "token": TOKEN}
    assert read.state.results["tokenize"] == {"token": TOKEN}
    with pytest.raises(EncryptedValueError):
        recording.decrypted(None, {"card": "1"})
    assert recording.decrypted(None, {"card": "1", "token": "2"}).state.results["tokenize"] == {"token": "2"}


def test_what_stands_for_a_value_survives_both_forms() -> None:
    value = {"card": Encrypted(b"\x00\xff"), "none": Encrypted(b"")}
    assert decode(encode(value)) == value == from_json(to_json(value))
    assert len({Encrypted(b"1"), Encrypted(b"1"), Encrypted(b"2")}) == 2
    assert Encrypted(b"1") != b"1"


def test_a_value_that_is_changed_in_place_is_put_back_and_hidden(url: str) -> None:
    store = open_storage(url)

    async def fails(ctx: Any) -> None:
        raise DownError

    made: Saga[Any] = Saga("s", snapshot_storage=store, replay_config=hiding(Cipher(), "cards"))
    made.add_step("add", lambda ctx: ctx["cards"].append(CARD), lambda ctx: None).add_step("fail", fails)
    result = run(made.run({"cards": ["1"]}, saga_id="S"))
    assert result.context == {"cards": ["1"]}
    _, states = run(stored(store))
    assert {type(state["context"]["cards"]) for state in states} == {Encrypted}
    assert len({state["context"]["cards"] for state in states}) == 2
    assert CARD not in repr(states)


class Broken(Cipher):
    def encrypt(self, key: str, value: bytes) -> bytes:
        if key == "token":
            raise ConnectionError("no key server")
        return super().encrypt(key, value)


class Text(Cipher):
    def encrypt(self, key: str, value: bytes) -> Any:
        return "text"


def test_what_the_cipher_refuses_is_not_stored(url: str, caplog: pytest.LogCaptureFixture) -> None:
    store = open_storage(url)
    with pytest.raises(CannotStoreError) as raised:
        run(order(store, hiding(Broken())).run({"card": CARD}, saga_id="S"))
    assert str(raised.value) == "context['token']: its cipher could not encrypt it (ConnectionError: no key server)"
    assert TOKEN not in repr(run(stored(store)))

    warns = hiding(Broken(), on_capture_error="warn")
    assert run(order(store, warns).run({"card": CARD}, saga_id="W")).success
    assert "its cipher could not encrypt it" in caplog.text
    events, states = run(stored(store, "W"))
    assert TOKEN not in repr((events, states))
    assert states[-1]["context"].keys() == {"card"}


def test_a_start_that_cannot_be_encrypted_is_refused(url: str) -> None:
    store = open_storage(url)
    with pytest.raises(CannotStoreError, match=r"its cipher gave a 'str', and must give bytes"):
        run(order(store, hiding(Text())).run({"card": CARD}, saga_id="S"))
    assert run(store.get_saga("S")) is None


def test_settings_that_would_show_the_values_are_refused() -> None:
    with pytest.raises(UsageError, match="'card' is both in encrypt_fields and in index_keys"):
        hiding(Cipher(), "card", index_keys=("card",))
    with pytest.raises(UsageError, match="field_cipher"):
        ReplayConfig(encrypt_fields=("card",), field_cipher=object())  # type: ignore[arg-type]
