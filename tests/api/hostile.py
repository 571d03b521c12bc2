"""What no address of the API takes: bodies, headers, and whole requests, made by hand."""

import json
from collections.abc import Iterator
from typing import Any

# Values that a member which is not known there may have; whatever it is, the body is refused.
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**53, 2**63, -(2**63) - 1, 10**40, 0.1, -0.0, 1e308,
    5e-324,
    "", " ", "\t", "a" * 5_000, "\u0000", "\u001b[2J", "\u007f", "\u0085", "\ufeff", "\ufffe",
    "\u202e",
    "\u200b", "\ud83d\ude00" * 500, "e\u0301" * 500, "\u0130", "\u212a", "\uff21", "\ufdfa" * 300,
    "' OR '1'='1", "'; DROP TABLE vf.vouchers; --", "1; SELECT pg_sleep(5)--", "$$; COMMIT; --",
    "\\'; SELECT set_config('app.project_id', '', false); --", "${jndi:ldap://127.0.0.1/a}",
    "{{7*7}}", "${7*7}", "<%= 7*7 %>", "#{7*7}", "{0.__class__}", "%s%s%s%n", "%00", "..%2f..%2f",
    "../../../../etc/passwd", "file:///etc/passwd", "http://169.254.169.254/latest/meta-data/",
    "gopher://127.0.0.1:6379/_FLUSHALL", "<script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)>",
    "javascript:alert(1)", "=cmd|'/c calc'!A1", "@SUM(1+1)", "+1+1", "-1+1", "=HYPERLINK(\"x\")",
    "\uff1dcmd", "a\r\nSet-Cookie: x=1", "a\nX-Admin: 1", "NaN", "Infinity", "-Infinity", "1e400",
    "0x10", "1_000", "\u0661\u0662", "true", "null", "undefined", "[object Object]", "constructor",
    "vf_sk_" + "0" * 49, "Bearer x", "9999-12-31T23:59:59.999999999Z", "0000-00-00T00:00:00Z",
    "2030-02-30T00:00:00Z", "-292277022657-01-27T08:29:52Z", [], [[]], [None], [0] * 1_000,
    [[[[[[[[[[1]]]]]]]]]], {}, {"": ""}, {"a": {"b": {"c": {}}}}, {"__proto__": {"admin": True}},
    {"constructor": {"prototype": {}}}, {"$ne": None}, {"$gt": ""}, {"$where": "1"},
    {"@type": "java.net.URL"}, {"!!python/object": "os.system"}, {str(n): n for n in range(500)},
)  # fmt: skip
# Members that somebody would like to be taken.
NAMES = (
    "is_admin", "project_id", "account_id", "id", "created_at", "redeemed_count", "balance_minor",
    "__proto__", "constructor", "prototype", "role", "plan", "scopes_", "discount_minor",
    "lease_id",
    "seq", "direct_count", "authority", "digest", "password_hash", "", " ", "\u0000", "a\u0000b",
    "a" * 300, "a.b", "$where", "@", "customer_id ", "Customer_ID", "\u0441ode", "code\u200b",
)  # fmt: skip


def bodies() -> Iterator[tuple[str, bytes]]:
    """Yield bodies that no address takes, whatever it is, each with what is wrong with it."""
    for number, value in enumerate(VALUES):
        yield f"an unknown member, value {number}", json.dumps({"zzz": value}).encode()
        if not isinstance(value, dict):
            yield f"no object but value {number}", json.dumps(value).encode()
    for name in NAMES:
        yield f"the member {name[:20]!a}", json.dumps({name: 1, "zzz": 1}).encode()
    for text in (
        b" ", b"\n", b"\t\r\n", b"{", b"}", b"[", b"]", b'"', b"'", b":", b",", b"{]", b"[}",
        b"{{}}",
        b"{,}", b'{"a"}', b'{"a":}', b'{"a":1,}', b'{"a" 1}', b"{a:1}", b"{'a':1}",
        b'{"a":1}{"a":1}',
        b'{"zzz":01}', b'{"zzz":+1}', b'{"zzz":.5}', b'{"zzz":1.}', b'{"zzz":1e}', b'{"zzz":0x1}',
        b'{"zzz":NaN}', b'{"zzz":Infinity}', b'{"zzz":-Infinity}', b'{"zzz":nan}', b'{"zzz":tru}',
        b'{"zzz":"\\x41"}', b'{"zzz":"\\u12"}', b'{"zzz":"\\ud800"}', b'{"zzz":"\\udc00\\ud800"}',
        b'{"zzz":"\n"}', b'{"zzz":"\x00"}', b'{"zzz":"\x1f"}', b'{"zzz":"\xff"}', b'{"\xff":1}',
        b'{"zzz":"\xc0\xaf"}', b'{"zzz":"\xed\xa0\x80"}', b'{"zzz":"\xf4\x90\x80\x80"}',
        b"\xff\xfe",
        b'\xef\xbb\xbf{"zzz":1}', '{"zzz":1}'.encode("utf-16"), '{"zzz":1}'.encode("utf-16-be"),
        '{"zzz":1}'.encode("utf-32"), '{"zzz":1}'.encode("utf-7") + b"+", b"\x00", b"\x00" * 1_000,
        b"\x1f\x8b\x08\x00\x00\x00\x00\x00", b"PK\x03\x04", b"%PDF-1.7", b"\x7fELF", b"\x89PNG\r\n",
        b"// no comment\n{}", b"/* none */{}", b"{}/**/", b"<?xml version='1.0'?><a/>",
        b"--- {a: 1}",
        b"<!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><a>&x;</a>", b"a=1&b=2",
        b"a;b\n1;2",
        b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n1\r\n--x--", b"\x82\xa1a\x01",
        b"undefined",
        b"(1)", b"`a`", b"!!js/function", b"cos\nsystem\n(S'id'\ntR.", b"\x80\x04\x95.",
        b"O:1:\"A\":0:{}",
        b'{"zzz":1,"zzz":2}', b'{"zzz":{"a":1,"a":2}}', b'{"zzz":' + b"9" * 5_000 + b"}",
        b'{"zzz":1e' + b"9" * 500 + b"}", b'{"zzz":0.' + b"0" * 5_000 + b"1}",
        b'{"zzz":-' + b"1" * 400 + b"." + b"1" * 400 + b"e-" + b"9" * 20 + b"}",
    ):  # fmt: skip
        yield f"not JSON as it should be: {text[:24]!r}", text
    for depth in (33, 100, 1_000, 5_000, 20_000):
        for opening, closing in ((b"[", b"]"), (b'{"a":', b"}"), (b'[{"a":', b"}]")):
            yield f"{depth} deep, open", opening * depth
            yield f"{depth} deep, closed", opening * depth + b"1" + closing * depth
            yield (
                f"a member {depth} deep",
                b'{"zzz":' + opening * depth + b"1" + closing * depth + b"}",
            )
    for count in (1_000, 10_000, 30_000):
        yield f"a list of {count}", b'{"zzz":[' + b"1," * count + b"1]}"
        yield f"{count} brackets in a text", b'{"zzz":"' + b"[{" * count + b'"}'
        yield f"{count} escaped quotes", b'{"zzz":"' + b'\\"' * count + b'"}'
        yield f"{count} backslashes", b'{"zzz":"' + b"\\\\" * count + b'"}'
    for count in (100, 1_000, 4_000):
        many = ",".join(f'"m{n}":{n}' for n in range(count))
        yield f"{count} members", f"{{{many}}}".encode()
        yield f"{count} times one member", b"{" + b'"zzz":1,' * count + b'"zzz":1}'
    for size in (65_536, 65_537, 100_000, 1_048_577, 11_000_000):
        yield f"{size} bytes of text", b'{"zzz":"' + b"x" * size + b'"}'
        yield f"{size} spaces", b" " * size


HEADERS: tuple[dict[str, str | bytes], ...] = (
    {"Content-Type": "text/plain"}, {"Content-Type": "application/xml"},
    {"Content-Type": "text/html"},
    {"Content-Type": "multipart/form-data; boundary=x"},
    {"Content-Type": "application/octet-stream"},
    {"Content-Type": "application/x-www-form-urlencoded"}, {"Content-Type": "application/jsonp"},
    {"Content-Type": "application/msgpack"}, {"Content-Type": "x" * 4_000}, {"Content-Type": "/"},
    {"Content-Type": b"\xff\xfe"}, {"Idempotency-Key": "x" * 256}, {"Idempotency-Key": "x" * 8_000},
    {"Idempotency-Key": '""'}, {"Idempotency-Key": b"\xff"}, {"Idempotency-Key": "\u00e9".encode()},
    {"Idempotency-Key": b"a\tb"}, {"Authorization": "Bearer"}, {"Authorization": "Bearer "},
    {"Authorization": "Basic dTpw"}, {"Authorization": "Bearer vf_sk_" + "0" * 49},
    {"Authorization": ""},
    {"Authorization": "Bearer " + "x" * 7_000}, {"Authorization": b"Bearer \xff\xfe"},
    {"Authorization": "Bearer ' OR 1=1"}, {"Authorization": "bearer\tx"},
    {"Authorization": "Digest x"},
)  # fmt: skip
"""Headers that make a good request a bad one."""

ODD_HEADERS: tuple[dict[str, str | bytes], ...] = (
    {"X-Request-Id": "x" * 5_000}, {"X-Request-Id": b"\xff"}, {"X-Request-Id": "a b"},
    {"Accept": "*/*;q=2"}, {"Accept": "x" * 5_000}, {"Accept-Language": "x" * 5_000},
    {"Cookie": "vauchflow_session=x"}, {"Cookie": "a=" + "x" * 7_000}, {"Cookie": b"\xff=\xff"},
    {"Origin": "null"}, {"Origin": "https://evil.example"}, {"Referer": "x" * 5_000},
    {"X-Forwarded-For": "127.0.0.1, 10.0.0.1"}, {"X-Forwarded-Host": "evil.example"},
    {"X-HTTP-Method-Override": "DELETE"}, {"X-Original-URL": "/v1/api-keys"},
    {"Forwarded": "for=1"},
    {"X-VauchFlow-Peer": "10.0.0.1:1"}, {"VauchFlow-Project": "prj_" + "0" * 26},
    {"X-CSRF-Token": "x"}, {"Sec-Fetch-Site": "cross-site"}, {"Content-Encoding": "gzip"},
    {"Range": "bytes=0-1"}, {"If-None-Match": "*"}, {"Expect": "something"}, {"TE": "trailers"},
    {"Upgrade": "websocket"}, {"Connection": "Upgrade, HTTP2-Settings"}, {"User-Agent": b"\xff"},
)  # fmt: skip
"""Headers that change nothing of what a bad body is answered."""


def requests(path: str, key: str) -> Iterator[tuple[str, bytes]]:
    """Yield whole requests that are refused or cut off."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n".encode()
    ten = b"Content-Length: 10\r\n"
    coding, ended = b"Transfer-Encoding: chunked\r\n", b"\r\n0\r\n\r\n"
    yield from {
        "two lengths": head + ten + b"Content-Length: 2\r\n\r\n{}",
        "a length of letters": head + b"Content-Length: ten\r\n\r\n{}",
        "a negative length": head + b"Content-Length: -1\r\n\r\n{}",
        "a signed length": head + b"Content-Length: +2\r\n\r\n{}",
        "a length in hex": head + b"Content-Length: 0x2\r\n\r\n{}",
        "a length with a comma": head + b"Content-Length: 2, 2\r\n\r\n{z",
        "a huge length": head + b"Content-Length: 99999999999999999999\r\n\r\n{}",
        "length and chunks": head + b"Content-Length: 4\r\n" + coding + ended,
        "chunks twice": head + coding + b"Transfer-Encoding: x\r\n" + ended,
        "chunks obscured": head + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "chunks and more": head + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "a chunk of letters": head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
        "a huge chunk": head + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n{}\r\n",
        "a negative chunk": head + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n{}\r\n0\r\n\r\n",
        "a folded header": head + b"X-A: 1\r\n 2\r\nContent-Length: 0\r\n\r\n",
        "a header with a space": head + b"Content-Length : 2\r\n\r\n{}",
        "a header without a name": head + b": x\r\n\r\n",
        "a header without a colon": head + b"nonsense\r\n\r\n",
        "NUL in a header": head + b"X-A: a\x00b\r\n\r\n",
        "a bare line feed": head + b"X-A: 1\nX-B: 2\r\n\r\n\x00",
        "100 kB of header": head + b"X-A: " + b"x" * 100_000 + b"\r\n\r\n",
        "5,000 headers": head + b"".join(b"X-%d: 1\r\n" % n for n in range(5_000)) + b"\r\n",
        "a long address": b"POST /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        "no version": f"POST {path}\r\n\r\n".encode(),
        "version 9": f"POST {path} HTTP/9.9\r\nHost: x\r\n\r\n".encode(),
        "a second version": f"POST {path} HTTP/1.1 HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
        "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 300,
        "a strange method": f"\x00\x01 {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
        "a long method": b"X" * 10_000 + f" {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
        "CONNECT": b"CONNECT 127.0.0.1:6379 HTTP/1.1\r\nHost: 127.0.0.1:6379\r\n\r\n",
        "another host's address": b"POST http://evil.example/v1/x HTTP/1.1\r\nHost: x\r\n\r\n",
        "a space in the address": b"POST /v1/vouchers/a b/redeem HTTP/1.1\r\nHost: x\r\n\r\n",
        "bytes in the address": b"POST /v1/vouchers/\xff\xfe/redeem HTTP/1.1\r\nHost: x\r\n\r\n",
        "half an escape": b"POST /v1/vouchers/%/redeem HTTP/1.1\r\nHost: x\r\n\r\n",
        "nothing": b"\r\n\r\n\r\n\r\n",
        "noise": bytes(range(256)) * 20,
        "Redis": b"*1\r\n$8\r\nFLUSHALL\r\n",
        "PostgreSQL": b"\x00\x00\x00\x08\x04\xd2\x16\x2f",
        "a cut body": head + ten + b"\r\n{",
        "two keys": head + b"Authorization: Bearer y\r\nContent-Length: 1\r\n\r\n{",
        "an unknown coding": head + b"Transfer-Encoding: gzip\r\n\r\n\x1f\x8b",
    }.items()  # fmt: skip
