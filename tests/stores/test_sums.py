"""Checksums of records are of their rows, whatever is remembered of them: what earlier releases wrote stays good."""

from zlib import crc32

import pytest

from sagaz_core.storage._rows import saga_row, saga_sum
from sagaz_core.storage.contract import a_saga


@pytest.mark.parametrize("model", [{}, {"steps": ["it's"]}, {"steps": ['"'], "name": "\ud83d\ude00 é"}])
def test_the_sum_of_a_saga_is_that_of_its_row(model):
    record = a_saga("s'1")._replace(model=model)
    row = saga_row(record)
    assert saga_sum(record) == crc32(repr(row).encode("utf-8", "surrogatepass"))
    assert saga_sum(record, row[4]) == saga_sum(record)
