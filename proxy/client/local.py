"""Commands in which the sidecar has a hand: identity, database, protocol, the client's connection, INFO.

Each answer is made as Redis would make it. What is malformed is not judged here: it goes to Redis,
whose error text is always right.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from proxy.client import homes, journal, keyspace, listing, outage, own, siblings
from proxy.client.dispatch import link_protocol
from proxy.resp import encode
from proxy.resp.downgrade import Shape, downgrade
from proxy.resp.errors import UpstreamError, UpstreamRefused
from proxy.resp.keys import word
from proxy.upstream.caller import Question
from proxy.upstream.link import LINK_NAME, Identity, LinkKey
from proxy.upstream.shared import SharedLink

if TYPE_CHECKING:
    from proxy.client.clients import Clients
    from proxy.client.session import Session
    from proxy.client.spaces import Space

WITHOUT_AUTH = frozenset({"auth", "hello", "quit", "reset"})
"""Commands that a client may send before it has authenticated."""

NOAUTH = encode.error("NOAUTH Authentication required.")
_HELLO_WITHOUT_AUTH = encode.error(
    "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH "
    "<user> <pass> option can be used to authenticate the client and select the RESP protocol version at the "
    "same time"
)

DISGUISED = encode.error("ERR unknown command: its name holds a zero byte")

FIRST_ID = 1 << 40
"""Session ids begin here, so that they are never taken for ids of Redis' own."""

_PLAIN_NAME = re.compile(rb"[!-~]*").fullmatch
_INTEGER = re.compile(rb"-?[1-9][0-9]{0,18}|0").fullmatch

_BAD_NAME = encode.error("ERR Client names cannot contain spaces, newlines or special characters.")

Answer = bytes | Coroutine[None, None, bytes] | None


def answer(session: Session, name: str, arguments: list[bytes]) -> Answer:
    """The reply to a command, a coroutine that makes it, or None if the session has dealt with it.

    The coroutine raises UpstreamError, whose reply then is the answer.
    """
    if session.link.auth_required and not session.space.refuses_auth and name not in WITHOUT_AUTH:
        return _admitted(session, name, arguments)
    if session.identity.user is not None and name.startswith("client|") and not outage.excuses(session, name):
        return _permitted(session, name, arguments)
    return _ANSWERS[name](session, arguments)


async def whole_answer(session: Session, name: str, arguments: list[bytes]) -> bytes:
    """The same, waited for. Raises UpstreamError."""
    return await _awaited(answer(session, name, arguments))


async def answer_sibling(clients: Clients, about: Mapping[str, Any], data: bytes) -> bytes:
    """The reply to a request of somebody who is a client of another worker. Raises KeyError if there is no
    such space here."""
    arguments = clients.dispatcher.parse(data) or []
    async with siblings.stand_in(clients, about) as session:
        try:
            return await _reply(session, clients.dispatcher.name(arguments), arguments)
        except UpstreamError as error:
            return error.reply


async def follow(session: Session, at: LinkKey) -> None:
    """Have the session live where its own link has gone, but for the space. Raises UpstreamError."""
    await _go_over(session, session.space, at.identity, at.database, at.protocol)


async def _admitted(session: Session, name: str, arguments: list[bytes]) -> bytes:
    """Answer if Redis does not want the client to authenticate any more; else Redis' error is the answer."""
    verdict = await _ask(session, encode.request("PING"))
    if verdict.startswith(b"-"):
        return verdict
    return await _reply(session, name, arguments)


async def _permitted(session: Session, name: str, arguments: list[bytes]) -> bytes:
    """Answer if Redis lets the session's user say such a command (Redis docs: ACL)."""
    words = _HARMLESS.get(name, arguments)
    verdict = await _ask(session, encode.request(*words))
    if verdict.startswith(b"-NOPERM"):
        return verdict
    return await _reply(session, name, arguments)


async def _reply(session: Session, name: str, arguments: list[bytes]) -> bytes:
    return await _awaited(_ANSWERS[name](session, arguments))


async def _awaited(reply: Answer) -> bytes:
    if reply is None or isinstance(reply, bytes):
        return reply or b""
    return await reply


_HARMLESS: dict[str, list[bytes]] = {
    "client|kill": [b"CLIENT", b"KILL", b"ID", b"%d" % FIRST_ID],
    "client|list": [b"CLIENT", b"LIST", b"TYPE", b"master"],
    "client|setinfo": [b"CLIENT", b"SETINFO", b"LIB-NAME", b""],
    "client|setname": [b"CLIENT", b"SETNAME", LINK_NAME],
    "client|unblock": [b"CLIENT", b"UNBLOCK", b"%d" % FIRST_ID],
}
"""What Redis is asked instead, where a client's own words would do something to the link or to others."""


async def _ask(session: Session, request: bytes) -> bytes:
    """Redis' reply to a request, in the client's protocol."""
    link = session.link
    reply = await Question().ask(link, request)
    if session.protocol == 2 and link.wire is not None and link.wire.protocol == 3:
        reply = downgrade(reply, Shape.TYPED)
    return reply


# --- who the client is, where and how it speaks


def _hello(session: Session, arguments: list[bytes]) -> Answer:
    protocol = session.protocol
    if len(arguments) > 1:
        if not _INTEGER(arguments[1]):
            return encode.error("ERR Protocol version is not an integer or out of range")
        protocol = int(arguments[1])
        if protocol not in (2, 3):
            return encode.error("NOPROTO unsupported protocol version")
    credentials: list[bytes] | None = None
    name: bytes | None = None
    at = 2
    while at < len(arguments):
        option = arguments[at].upper()
        if option == b"AUTH" and at + 2 < len(arguments):
            credentials, at = arguments[at + 1 : at + 3], at + 3
        elif option == b"SETNAME" and at + 1 < len(arguments):
            name, at = arguments[at + 1], at + 2
            if not _PLAIN_NAME(name):
                return _BAD_NAME
        else:
            option_text = arguments[at].decode("utf-8", "surrogateescape")
            return encode.error(f"ERR Syntax error in HELLO option '{option_text}'")
    return _say_hello(session, protocol, credentials, name)


async def _say_hello(
    session: Session, protocol: int, credentials: list[bytes] | None, name: bytes | None
) -> bytes:
    space, identity = session.space, session.identity
    if credentials is not None:
        space, identity = await _identify(session, credentials, protocol)
    elif space.locked:
        return _HELLO_WITHOUT_AUTH
    link = await _go_over(session, space, identity, session.database, protocol)
    if name is not None:
        session.name = name
    hello: dict[Any, Any] = dict(link.hello)
    hello |= {b"proto": protocol, b"id": session.id}
    return encode.value(hello, protocol)


def _auth(session: Session, arguments: list[bytes]) -> Answer:
    if len(arguments) > 3:
        return encode.error("ERR syntax error")
    return _log_in(session, arguments[1:])


async def _log_in(session: Session, credentials: list[bytes]) -> bytes:
    space, identity = await _identify(session, credentials, session.protocol)
    await _go_over(session, space, identity, session.database, session.protocol)
    return encode.OK


async def _identify(session: Session, credentials: list[bytes], protocol: int) -> tuple[Space, Identity]:
    """Who the client is by these arguments of an AUTH, and where it lives. Raises UpstreamError."""
    try:
        return await _judge(session, credentials, protocol)
    except UpstreamRefused as refused:
        journal.say(session, logging.WARNING, "auth_refused", "could not authenticate", str(refused))
        raise


async def _judge(session: Session, credentials: list[bytes], protocol: int) -> tuple[Space, Identity]:
    clients = session.clients
    if clients.spaces.mode == "passthrough":
        return session.space, await clients.links.login(credentials, protocol)
    space = clients.spaces.judge(credentials)
    if space is None:
        return session.space, session.identity
    return space, space.identity or clients.identity


def _select(session: Session, arguments: list[bytes]) -> Answer:
    number = arguments[1]
    if not _INTEGER(number) or abs(int(number)) >= 2**31:
        return _ask(session, encode.request(*arguments))  # Redis refuses it
    return _select_database(session, int(number))


async def _select_database(session: Session, database: int) -> bytes:
    if database < 0:
        return await _ask(session, encode.request("SELECT", database))
    await _go_over(session, session.space, session.identity, database, session.protocol)
    return encode.OK


async def _go_over(
    session: Session, space: Space, identity: Identity, database: int, protocol: int
) -> SharedLink:
    """Move the session to another shared link once that is known to work. Raises UpstreamError."""
    links = session.clients.links
    served = link_protocol(Shape.PLAIN, protocol, session.clients.tier is not None)
    link = links.attach(LinkKey(identity, database, served, space.name))
    try:
        if identity != session.identity:
            link.retry()  # its credentials have just proved right
        await link.settled()
        stale = link.serves_stale
        if link.refusing and not stale:
            if space.identity is not None and isinstance(link.error, UpstreamRefused):
                raise UpstreamRefused(f"ERR pannier: Redis refuses the tenant's upstream user: {link.error}")
            raise link.refusal
        if link.wire is not None and link.wire.refusal:
            raise UpstreamRefused(link.wire.refusal)
        if protocol == 3 and link.wire is not None and link.wire.protocol != 3:
            raise UpstreamRefused(link.wire.no_resp3)
        goes_over = identity != session.identity or space is not session.space
        if goes_over and not stale and (session.served > 1 or not links.by_bus(space.prefix)):
            # What the client has seen must not be older in the shelf it comes to. Where the bus alone keeps
            # memory true, that would empty it, for each client; one that begins with this has seen nothing.
            await links.passed(space.prefix)
        homes.adopt(session, space, identity, database, protocol, link)
    except BaseException:
        links.detach(link)
        raise
    return link


# --- the client's own connection


def _client_id(session: Session, arguments: list[bytes]) -> Answer:
    return encode.integer(session.id)


def _client_getname(session: Session, arguments: list[bytes]) -> Answer:
    return encode.bulk(session.name) if session.name else encode.null(session.protocol)


def _client_setname(session: Session, arguments: list[bytes]) -> Answer:
    if not _PLAIN_NAME(arguments[2]):
        return _BAD_NAME
    session.name = arguments[2]
    return encode.OK


def _client_setinfo(session: Session, arguments: list[bytes]) -> Answer:
    attribute = arguments[2].decode("utf-8", "surrogateescape")
    if attribute.lower() not in ("lib-name", "lib-ver"):
        return encode.error(f"ERR Unrecognized option '{attribute}'")
    if not _PLAIN_NAME(arguments[3]):
        return encode.error(f"ERR {attribute.lower()} cannot contain spaces, newlines or special characters.")
    session.info = (session.info or {}) | {attribute.lower(): arguments[3]}
    return encode.OK


def _client_info(session: Session, arguments: list[bytes]) -> Answer:
    return encode.text(listing.line(session) + "\n", session.protocol)


def _client_list(session: Session, arguments: list[bytes]) -> Answer:
    try:
        chosen = listing.chosen(session, arguments[2:])
    except ValueError as error:
        return encode.error(str(error))
    listed = "".join(listing.line(other) + "\n" for other in chosen)
    if siblings.alone(session):
        return encode.text(listed, session.protocol)
    return _client_list_of_all(session, arguments, listed)


async def _client_list_of_all(session: Session, arguments: list[bytes], listed: str) -> bytes:
    """Those of the other workers, too."""
    for _, reply in sorted((await siblings.ask(session, arguments)).items()):
        found = siblings.read(reply) if reply is not None else b""
        listed += found.decode("utf-8", "surrogateescape") if isinstance(found, bytes) else str(found)
    return encode.text(listed, session.protocol)


def _client_kill(session: Session, arguments: list[bytes]) -> Answer:
    by_id = len(arguments) > 3 and arguments[2].upper() == b"ID"
    if by_id and _theirs(arguments[3]) and session.space.namespace is None:
        return _ask(session, encode.request(*arguments))
    if siblings.alone(session):
        return _kill(session, arguments)
    return _client_kill_of_all(session, arguments)


async def _client_kill_of_all(session: Session, arguments: list[bytes]) -> bytes:
    """The other workers' first: one's own may be the one who asks."""
    theirs = [siblings.read(reply) for reply in (await siblings.ask(session, arguments)).values() if reply]
    killed = sum([found for found in theirs if isinstance(found, int)]) + theirs.count(b"OK")
    return await _awaited(_kill(session, arguments, killed))


def _kill(session: Session, arguments: list[bytes], elsewhere: int = 0) -> bytes | None:
    """Close clients of this process. `elsewhere`: how many others have closed."""
    if len(arguments) == 3:
        address = arguments[2].decode("utf-8", "replace")
        victims = [other for other in listing.seen(session) if other.address == address]
        if not victims and not elsewhere:
            return encode.error("ERR No such client")
        reply = encode.OK
    else:
        try:
            victims = listing.victims(session, arguments[2:])
        except ValueError as error:
            return encode.error(str(error))
        reply = encode.integer(len(victims) + elsewhere)
    for victim in victims:
        if victim is not session:
            victim.abort("killed by CLIENT KILL")
    if session in victims:
        session.write(reply)
        session.finish()
        return None
    return reply


def _client_unblock(session: Session, arguments: list[bytes]) -> Answer:
    if len(arguments) > 4 or (not _ours(arguments[2]) and session.space.namespace is None):
        return _ask(session, encode.request(*arguments))
    target = session.clients.sessions.get(int(arguments[2])) if _ours(arguments[2]) else None
    if target is None and not siblings.alone(session):
        return _client_unblock_elsewhere(session, arguments)
    if (
        target is None
        or not listing.sees(session, target)
        or target.pin is None
        or not target.pin.blocking
        or target.upstream_id is None
    ):
        return encode.integer(0)
    request = encode.request("CLIENT", "UNBLOCK", target.upstream_id, *arguments[3:])
    return _ask(session, request)


async def _client_unblock_elsewhere(session: Session, arguments: list[bytes]) -> bytes:
    theirs = [reply for reply in (await siblings.ask(session, arguments)).values() if reply]
    return next((reply for reply in theirs if reply != b":0\r\n"), encode.integer(0))


def _theirs(number: bytes) -> bool:
    # Redis 6.2 takes id 0 for no filter at all, and would kill every link.
    return bool(_INTEGER(number)) and 0 < int(number) < FIRST_ID


def _ours(number: bytes) -> bool:
    return bool(_INTEGER(number)) and int(number) >= FIRST_ID


def redirect_target(session: Session, arguments: Sequence[bytes]) -> Session | None:
    """The session that CLIENT TRACKING … REDIRECT names, if it is one that this one may see."""
    place = _redirect_place(arguments)
    if not place or not _ours(arguments[place]):
        return None
    target = session.clients.sessions.get(int(arguments[place]))
    return target if target is not None and listing.sees(session, target) else None


def redirected(session: Session, arguments: list[bytes], data: bytes) -> bytes:
    """A CLIENT TRACKING request with the session's id in REDIRECT replaced by that of its link."""
    target = redirect_target(session, arguments)
    if target is None or target.upstream_id is None:
        return data
    if target.pin is not None:
        target.pin.named = True
    place = _redirect_place(arguments)
    return encode.request(*arguments[:place], target.upstream_id, *arguments[place + 1 :])


def _redirect_place(arguments: Sequence[bytes]) -> int:
    if len(arguments) < 5 or word(arguments[0]) != b"client" or word(arguments[1]) != b"tracking":
        return 0
    for place, argument in enumerate(arguments[3:-1], 4):
        if word(argument) == b"redirect":
            return place
    return 0


# --- the rest


def _info(session: Session, arguments: list[bytes]) -> Answer:
    sections = {argument.lower() for argument in arguments[1:]}
    if sections == {b"sidecar"}:
        return encode.text(session.clients.info(session.space), session.protocol)
    ours = not sections or bool(sections & {b"all", b"default", b"everything", b"sidecar"})
    if not ours:
        return _info_of(session, arguments)
    return _info_with_ours(session, [argument for argument in arguments if argument.lower() != b"sidecar"])


async def _info_of(session: Session, arguments: list[bytes]) -> bytes:
    reply, namespace = await _ask(session, encode.request(*arguments)), session.space.namespace
    return reply if namespace is None else namespace.strip_info(reply)


async def _info_with_ours(session: Session, arguments: list[bytes]) -> bytes:
    reply = await _info_of(session, arguments)
    kind, _, rest = reply.partition(b"\r\n")
    if kind.startswith(b"-ERR pannier:"):
        return encode.text(session.clients.info(session.space), session.protocol)  # Redis is away: ours only
    if kind[:1] not in (b"$", b"="):
        return reply
    theirs = rest[:-2].removeprefix(b"txt:") if kind[:1] == b"=" else rest[:-2]
    whole = theirs.decode("utf-8", "surrogateescape") + "\r\n" + session.clients.info(session.space)
    return encode.text(whole, session.protocol)


def _reset(session: Session, arguments: list[bytes]) -> Answer:
    if session.identity != session.clients.identity or session.space is not session.origin:
        return _reset_identity(session)
    homes.reset(session)
    return b"+RESET\r\n"


async def _reset_identity(session: Session) -> bytes:
    await session.clients.links.passed(session.origin.prefix)
    homes.reset(session)
    return b"+RESET\r\n"


def _quit(session: Session, arguments: list[bytes]) -> Answer:
    session.write(encode.OK)
    session.finish()
    return None


def _acl_whoami(session: Session, arguments: list[bytes]) -> Answer:
    tenant = session.space.tenant
    if tenant is not None:
        return encode.bulk(tenant.name)
    return _ask(session, encode.request(*arguments))


def _whole(session: Session, arguments: list[bytes]) -> Answer:
    """A command on all keys of the session's namespace."""
    namespace, name = session.space.namespace, arguments[0].lower()
    if namespace is None:
        return _ask(session, encode.request(*arguments))
    if name == b"dbsize":
        return keyspace.dbsize(session, namespace)
    if name == b"randomkey":
        return keyspace.randomkey(session, namespace)
    return keyspace.flush(session, namespace, arguments)


_ANSWERS: dict[str, Callable[[Session, list[bytes]], Answer]] = {
    "acl|whoami": _acl_whoami,
    "auth": _auth,
    "client|getname": _client_getname,
    "client|id": _client_id,
    "client|info": _client_info,
    "client|kill": _client_kill,
    "client|list": _client_list,
    "client|setinfo": _client_setinfo,
    "client|setname": _client_setname,
    "client|unblock": _client_unblock,
    "dbsize": _whole,
    "flushall": _whole,
    "flushdb": _whole,
    "hello": _hello,
    "info": _info,
    "quit": _quit,
    "randomkey": _whole,
    "reset": _reset,
    "select": _select,
    "sidecar": own.sidecar,
}
