"""What ``aiopqr rotate`` says about a rotation of Vault's static roles that was interrupted."""

from __future__ import annotations

import pytest

from aiopqr.cli.rotate.output import Output
from aiopqr.credentials import Parity
from aiopqr.rotation.plan import Action
from aiopqr.rotation.run import Step
from aiopqr.rotation.vault_roles import RolePlan


def said(capsys: pytest.CaptureFixture[str], *steps: Step) -> str:
    output = Output()
    output.begin(RolePlan(Action.ROTATE, Parity.ODD, "orders_odd", ()))
    for step in steps:
        output.step(step)
    output.interrupted()
    return capsys.readouterr().err.splitlines()[-1].removeprefix("aiopqr rotate: interrupted: ")


def test_before_vault_is_asked_nothing_was_changed(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys) == "nothing was changed"


def test_while_vault_is_asked_it_may_have_changed_the_password(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, Step.CHECKED)
    assert "Vault may have changed the password of 'orders_odd'" in text
    assert "until `aiopqr check` says that this one can log in" in text


def test_once_vault_has_changed_the_password_only_the_login_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, Step.CHECKED, Step.ALTERED)
    assert "Vault has changed the password of 'orders_odd'" in text
    assert "until `aiopqr check` says that this one can log in" in text


def test_after_the_login_the_rotation_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, Step.CHECKED, Step.ALTERED, Step.VERIFIED)
    assert text == "the password of 'orders_odd' has been changed; its old sessions may still be open"
