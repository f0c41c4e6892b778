"""Proves to a host who you are, in ssh's order: keys of the agent, key files, then questions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from nemorun.remote.errors import AuthenticationFailed, ConnectError
from nemorun.remote.prompting import Prompt
from nemorun.remote.ssh_config import Host

if TYPE_CHECKING:
    import paramiko


def authenticate(transport: paramiko.Transport, host: Host, prompt: Prompt, timeout: float) -> None:
    """Log in; `timeout` in seconds for each answer of the host. AuthenticationFailed says what was tried."""
    import paramiko

    transport.auth_timeout = timeout
    tried: list[str] = []
    allowed = ["publickey", "keyboard-interactive", "password"]
    try:
        for name, key in _keys(host, prompt):
            tried.append(name)
            try:
                allowed = transport.auth_publickey(host.user, key)
            except paramiko.BadAuthenticationType as refused:
                allowed = refused.allowed_types
                break
            except paramiko.AuthenticationException:
                if not transport.is_active():
                    break
                continue
            if not allowed:
                return
            break  # the key was right, and the host wants to know more
        if "keyboard-interactive" in allowed and transport.is_active():
            if _answer(transport, host, prompt, tried):
                return
        elif "password" in allowed and transport.is_active():
            tried.append("a password")
            transport.auth_password(host.user, prompt(f"{host.user}@{host.alias}'s password: ", False))
            return
    except paramiko.AuthenticationException:
        pass  # said below, with all that was tried
    except (paramiko.SSHException, EOFError, OSError) as error:
        raise ConnectError(
            f"{host.alias}: the host ended the login: {error or 'connection closed'}."
        ) from error
    raise refusal(host, "; ".join(tried) or "nothing, for there is no key")


def refusal(host: Host, tried: str) -> AuthenticationFailed:
    return AuthenticationFailed(
        f"{host.alias} ({host.address}, port {host.port}) refuses {host.user or 'you'}. Tried: {tried}. "
        "Check the user's name, and that the key is known there; IdentityFile and User in the SSH "
        "configuration "
        "choose them."
    )


def _answer(transport: paramiko.Transport, host: Host, prompt: Prompt, tried: list[str]) -> bool:
    """Let the prompt answer the host's questions; False where the host does not ask in this way after all."""
    import paramiko

    asking: list[AuthenticationFailed] = []

    def handler(title: str, instructions: str, fields: list[tuple[str, bool]]) -> list[str]:
        tried.append("answers to its questions")
        heading = "\n".join(text.strip() for text in (title, instructions) if text.strip())
        answers = []
        try:
            for number, (question, echo) in enumerate(fields):
                before = f"{heading}\n" if heading and number == 0 else ""
                answers.append(prompt(f"{before}({host.user}@{host.alias}) {question}", echo))
        except AuthenticationFailed as error:  # raised in paramiko's own thread: carried over to ours
            asking.append(error)
            raise paramiko.SSHException("nobody to ask") from error
        return answers

    try:
        return not transport.auth_interactive(host.user, handler)
    except paramiko.BadAuthenticationType:
        return False
    except (paramiko.SSHException, EOFError):
        if asking:
            raise asking[0] from None
        raise


def _keys(host: Host, prompt: Prompt) -> Iterator[tuple[str, paramiko.PKey]]:
    """(Name, key): the agent's, those of the configuration first, then the files' that the agent has not."""
    import paramiko

    named = list(dict.fromkeys(host.identities))
    public = {text: file for file in named if (text := _public(file))}
    files = [file for file in named if file.is_file() and file.suffix != ".pub"]
    agent = paramiko.Agent()
    try:
        held = {key.get_base64(): key for key in agent.get_keys()}
        for text in sorted(held, key=lambda text: text not in public):
            if text in public or not host.identities_only:
                name = str(public.get(text) or held[text].comment or held[text].get_name())
                yield f"{name} (agent)", held[text]
        for file in files:
            if _public(file) not in held:
                yield str(file), _load(file, prompt)
    except paramiko.SSHException as error:
        raise AuthenticationFailed(f"{host.alias}: a key cannot be used: {error}.") from error
    finally:
        agent.close()


def _public(file: Path) -> str:
    """The public half of a key, in base64, where it lies beside the key, or alone."""
    beside = file if file.suffix == ".pub" else file.with_name(f"{file.name}.pub")
    words = beside.read_text(errors="replace").split() if beside.is_file() else []
    return words[1] if len(words) > 1 else ""


def _load(file: Path, prompt: Prompt) -> paramiko.PKey:
    import paramiko

    problem: Exception | None = None
    for kind in (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey):
        try:
            try:
                key = kind.from_private_key_file(str(file))
            except paramiko.PasswordRequiredException:
                passphrase = prompt(f"Passphrase of {file}: ", False)
                key = kind.from_private_key_file(str(file), passphrase)
        except (paramiko.SSHException, ValueError, OSError) as error:
            problem = error
            continue
        certificate = file.with_name(f"{file.name}-cert.pub")
        if certificate.is_file():
            key.load_certificate(str(certificate))
        return key
    raise AuthenticationFailed(f"the key {file} cannot be read: {problem}.")
