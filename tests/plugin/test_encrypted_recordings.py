"""`pytest --sagaz-replay=ID` of a saga with values that were stored encrypted."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from shops import Shop

VAULT = '''
import os

from sagaz_core import ReplayConfig, Saga, action, compensate


class Cipher:
    """Not one: it turns the bytes around, and knows whether it is allowed to."""

    def encrypt(self, key, value):
        return value[::-1]

    def decrypt(self, key, data):
        if "NO_KEY" in os.environ:
            raise PermissionError("no key")
        return data[::-1]


class Order(Saga):
    saga_name = "order"

    def __init__(self):
        super().__init__(replay_config=ReplayConfig(encrypt_fields=["card", "token"], field_cipher=Cipher()))

    @action("tokenize", in_doubt="compensate")
    async def tokenize(self, ctx):
        return {"token": ctx["card"].upper()}

    @compensate("tokenize")
    async def forget(self, ctx):
        pass

    @action("charge", in_doubt="compensate")
    async def charge(self, ctx):
        assert ctx["token"].isupper()

    @compensate("charge")
    async def refund(self, ctx):
        pass
'''


@pytest.fixture
def vault(shop: Shop) -> Shop:
    shop.write("shop", VAULT)
    command = (sys.executable, "-m", "sagaz_core.cli", "record", "shop:Order", "--id", "ORDER-1")
    assert shop.pytester.run(*command, "--context", '{"card": "visa"}').ret == 0
    return shop


def test_the_cipher_of_the_saga_reads_the_values(vault: Shop) -> None:
    result = vault.replay("--sagaz-depth=2")
    result.assert_outcomes(passed=9)
    result.stdout.fnmatch_lines(["ORDER-1: faithful, 7 plans, 7 sound"])


def test_without_its_key_each_value_is_to_be_given(vault: Shop) -> None:
    vault.monkeypatch.setenv("NO_KEY", "1")
    result = vault.replay()
    result.assert_outcomes(failed=8)
    result.stdout.fnmatch_lines(
        ["EncryptedValueError: the value of 'card' in saga 'ORDER-1' is encrypted, and *no key)"]
    )
    vault.replay("--sagaz-override=card=visa", "--sagaz-override=token=VISA").assert_outcomes(passed=8)


def test_a_process_that_is_killed_is_given_the_values(vault: Shop) -> None:
    vault.apart = True
    vault.replay("ORDER-1::kill:charge:effect", "--sagaz-kill").assert_outcomes(passed=1)
    vault.monkeypatch.setenv("NO_KEY", "1")
    vault.replay("ORDER-1::kill:charge:effect", "--sagaz-kill").assert_outcomes(failed=1)
