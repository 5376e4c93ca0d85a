"""What scripts may do outside their namespace: a question to Redis, and a warning.

Pannier gives a script its keys with the prefix; what a script makes up by itself only Redis' ACL can refuse.
So at the first script of each of Redis' users in a namespace, Redis is asked what it would let that user do.
The question is a script, too, as scripts are what it is about. Redis 7 tells by `redis.acl_check_cmd`, which
carries nothing out. Redis 6 has to be asked by calling: EXISTS of a key that nobody has, and, for what
concerns all keys at once, SWAPDB with what is no number; FLUSHALL is in the same categories, and never sent.

For a user who may not EVAL (but perhaps EVALSHA or FCALL) it is asked with EXISTS alone.

Redis docs: "ACL", "Lua API reference".
"""

from __future__ import annotations

import logging
import os
import re
from typing import TYPE_CHECKING

from proxy.events import fields
from proxy.resp import encode
from proxy.resp.commands import Command
from proxy.resp.namespace import SCRIPTS, Namespace, elements, text
from proxy.upstream.caller import Collector
from proxy.upstream.link import Identity

if TYPE_CHECKING:
    from proxy.upstream.shared import SharedLink

log = logging.getLogger("pannier.namespaces")

_ASK = """\
local outside, may = ARGV[1], {}
local asked = { {'keys', 'exists', outside}, {'all', 'swapdb', 'no', 'number'} }
if redis.acl_check_cmd then
  asked = {
    {'keys', 'get', outside}, {'keys', 'set', outside, ''}, {'keys', 'exists', outside},
    {'keys', 'del', outside}, {'keys', 'hgetall', outside}, {'keys', 'lpush', outside, ''},
    {'all', 'flushall'}, {'all', 'flushdb'}, {'all', 'swapdb', '0', '1'}, {'channels', 'publish', outside, ''}
  }
end
for _, words in ipairs(asked) do
  local what = table.remove(words, 1)
  if redis.acl_check_cmd then
    local known, allowed = pcall(redis.acl_check_cmd, unpack(words))
    if known and allowed then table.insert(may, what) end
  else
    local reply = redis.pcall(unpack(words))
    local err = type(reply) == 'table' and reply.err or ''
    if not string.find(err, 'user executing the script', 1, true) then table.insert(may, what) end
  end
end
return may
"""
_UNABLE = re.compile(rb"-NOPERM |-ERR (?!pannier)").match
"""An error to EVAL that asking again would not change."""
_DEEDS = {
    b"keys": "reach keys of others",
    b"all": "empty or exchange whole databases (FLUSHALL, FLUSHDB, SWAPDB)",
    b"channels": "publish to channels of others",
}


class Examiner:
    """Asks for one namespace, once for each of Redis' users."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        outside = b"\0pannier:outside:" + os.urandom(8).hex().encode()
        self.question = encode.request("EVAL", _ASK, 0, outside)
        self.about_keys = encode.request("EXISTS", outside)
        self._asked: set[Identity] = set()

    def examine(self, command: Command | None, link: SharedLink) -> None:
        """At the first script of the user that a link is authenticated as, find out what scripts may do."""
        who = link.key.identity
        if command is not None and command.name in SCRIPTS and who not in self._asked:
            self._asked.add(who)
            link.submit(_Verdict(self, link), 1, self.question)

    def told(self, link: SharedLink, question: bytes, reply: bytes) -> None:
        """Take Redis' answer."""
        if question is self.question and _UNABLE(reply):
            link.submit(_Verdict(self, link, self.about_keys), 1, self.about_keys)
        elif reply.startswith(b":"):
            self._warn(link.key.identity, {b"keys"})
        elif reply.startswith(b"*"):
            self._warn(link.key.identity, set(map(text, elements(reply))))
        elif not reply.startswith(b"-NOPERM"):
            self.untold(link)

    def untold(self, link: SharedLink) -> None:
        """Hear that there was no answer: ask again at the next script."""
        self._asked.discard(link.key.identity)

    def _warn(self, who: Identity, may: set[bytes]) -> None:
        name = self._namespace.name
        deeds = [deed for what, deed in _DEEDS.items() if what in may]
        if b"channels" in may and not self._namespace.channels:
            deeds.remove(_DEEDS[b"channels"])  # they are everybody's
        if deeds:
            user = (who.user or b"default").decode("utf-8", "replace")
            log.warning(
                "a script runs in namespace %s as Redis' user %s, and Redis would let it %s: restrict that "
                "user by ACL (~%s:* +@all -@admin -@dangerous, see docs/namespaces.md), or set "
                "namespace_scripts to refuse",
                name, user, ", and ".join(deeds), name,
                extra=fields("script_reach", namespace=name, user=user, reach=deeds),
            )  # fmt: skip


class _Verdict(Collector):
    """Waits for Redis' answer."""

    __slots__ = ("_examiner", "_link", "_question")

    def __init__(self, examiner: Examiner, link: SharedLink, question: bytes = b"") -> None:
        super().__init__(1)
        self._examiner = examiner
        self._link = link
        self._question = question or examiner.question

    def finish(self, replies: bytes) -> None:
        """Pass it on."""
        self._examiner.told(self._link, self._question, replies)

    def cut(self) -> None:
        """Say that there was none."""
        self._examiner.untold(self._link)
