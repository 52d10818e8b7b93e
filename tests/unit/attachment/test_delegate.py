"""cni_py.attachment.delegate: what a plugin that failed has printed."""

import pytest

from cni_py.attachment.delegate import error_object
from cni_py.errors import CniError


@pytest.mark.parametrize(
    ("stdout", "told"),
    [
        (b'{"cniVersion": "1.0.0", "code": 11, "msg": "busy", "details": "try later"}', (11, "busy", "try later")),
        (b'{"msg": "no code"}', (0, "no code", "")),
    ],
)
def test_an_error_object_keeps_its_code_and_words(stdout: bytes, told: tuple[int, str, str]) -> None:
    error = error_object(stdout)
    assert (error.code, error.msg, error.details) == told


@pytest.mark.parametrize(
    "stdout", [b"", b"panic: nil", b"[]", b'{"code": "11", "msg": "busy"}', b'{"code": 11, "msg": 1}']
)
def test_what_libcni_cannot_read_is_no_error_object(stdout: bytes) -> None:
    with pytest.raises(CniError) as refused:
        error_object(stdout)
    assert refused.value.code == 6
