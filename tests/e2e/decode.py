"""An independent decoder of captured TWAMP sessions: follows every control connection, opens its
encrypted streams, checks every HMAC, and opens every test packet with the keys that it finds.
Written from the RFCs; shares no code with the agent."""

import collections
import hashlib
import hmac
import ipaddress
import struct

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

UNAUTHENTICATED, AUTHENTICATED, ENCRYPTED, MIXED = 1, 2, 4, 8
INDIVIDUAL, REFLECT, SYMMETRICAL, DSCP_ECN, PTP = 16, 32, 64, 256, 512
ZERO = bytes(16)


def cbc(key, iv, octets, decrypt):
    cipher = Cipher(algorithms.AES(key), modes.CBC(iv))
    run = cipher.decryptor() if decrypt else cipher.encryptor()
    return run.update(octets) + run.finalize()


def hmac_sha1(key, text):
    return hmac.new(key, text, hashlib.sha1).digest()[:16]


class Wrong(Exception):
    """Something is not as the RFCs have it."""


class Stream:
    """One direction of a control connection."""

    def __init__(self):
        self.octets = b""
        self.keys = None

    def protect(self, aes, mac, iv, first=b""):
        self.keys, self.iv, self.text = (aes, mac), iv, first

    def take(self, length):
        if len(self.octets) < length:
            return None
        taken, self.octets = self.octets[:length], self.octets[length:]
        return taken

    def peek(self):
        block = self.octets[:16]
        if len(block) < 16:
            return None
        return cbc(self.keys[0], self.iv, block, True) if self.keys else block

    def message(self, length):
        """A whole message without its HMAC, which is checked."""
        wire = self.take(length)
        if wire is None:
            return None
        if not self.keys:
            if wire[-16:] != ZERO:
                raise Wrong("an HMAC field in mode 1")
            return wire[:-16]
        aes, mac = self.keys
        plain, self.iv = cbc(aes, self.iv, wire, True), wire[-16:]
        if hmac_sha1(mac, self.text + plain[:-16]) != plain[-16:]:
            raise Wrong("HMAC of a control message")
        self.text = b""
        return plain[:-16]


class Connection:
    """One control connection, read as its octets come."""

    def __init__(self, secrets):
        self.secrets = secrets
        self.client, self.server = Stream(), Stream()
        self.mode, self.keys, self.key_id = 0, None, b""
        self.messages = []
        self.sessions = []
        self.reader = self.read()
        self.want = None

    def feed(self):
        while self.want is None or len(self.want.octets) > 0:
            before = len(self.client.octets) + len(self.server.octets), len(self.messages)
            try:
                self.want = next(self.reader)
            except StopIteration:
                return
            if before == (len(self.client.octets) + len(self.server.octets), len(self.messages)):
                return

    def wait(self, stream, what):
        while True:
            value = what()
            if value is not None:
                return value
            yield stream

    def read(self):
        server, client = self.server, self.client
        greeting = yield from self.wait(server, lambda: server.take(64))
        self.offered = struct.unpack(">I", greeting[12:16])[0]
        challenge, salt = greeting[16:32], greeting[32:48]
        count = struct.unpack(">I", greeting[48:52])[0]
        if greeting[:12] + greeting[52:] != bytes(24):
            raise Wrong("reserved octets of the greeting")
        response = yield from self.wait(client, lambda: client.take(164))
        self.mode = struct.unpack(">I", response[:4])[0]
        if self.mode & ~self.offered or bin(self.mode & 15).count("1") != 1:
            raise Wrong(f"mode {self.mode:#x} of {self.offered:#x}")
        start = yield from self.wait(server, lambda: server.take(48))
        self.accept = start[15]
        if self.mode & (AUTHENTICATED | ENCRYPTED | MIXED):
            self.key_id = response[4:84].rstrip(b"\0")
            secret = self.secrets[self.key_id]
            key = hashlib.pbkdf2_hmac("sha1", secret, salt, count, 16)
            token = cbc(key, ZERO, response[84:148], True)
            if token[:16] != challenge:
                raise Wrong("the challenge in the token")
            self.keys = token[16:32], token[32:]
            block = cbc(self.keys[0], start[16:32], start[32:48], True)
            client.protect(*self.keys, response[148:])
            server.protect(*self.keys, start[32:48], first=block)
            start = start[:32] + block
        elif response[4:] != bytes(160):
            raise Wrong("keys in mode 1")
        self.start_time = struct.unpack(">Q", start[32:40])[0]
        while True:
            head = yield from self.wait(client, client.peek)
            command = head[0]
            count = struct.unpack(">I", head[12:16])[0]
            length = {2: 32, 3: 32, 5: 112, 7: 32 + 16 * count, 9: 32 + 16 * count}[command]
            body = yield from self.wait(client, lambda: client.message(length))
            self.messages.append((command, body))
            if command == 5:
                answer = yield from self.wait(server, lambda: server.message(48))
                self.session(body, answer)
            elif command == 2:
                ack = yield from self.wait(server, lambda: server.message(32))
                if ack != ZERO:
                    raise Wrong("Start-Ack")
            elif command in (7, 9):
                ack = yield from self.wait(server, lambda: server.message(length))
                if ack[:2] != bytes([command + 1, 0]) or ack[16:] != body[16:]:
                    raise Wrong(f"the ack of command {command}")

    def session(self, request, answer):
        _, version, conf_s, conf_r, slots, packets, sport, rport = struct.unpack(
            ">BBBBIIHH", request[:16])
        padding, start, timeout, type_p = struct.unpack(">IQQI", request[64:88])
        if (conf_s, conf_r, slots, packets, request[48:64]) != (0, 0, 0, 0, ZERO):
            raise Wrong("fields of Request-TW-Session that must be zero")
        if answer[0] != 0:
            raise Wrong(f"Accept {answer[0]}")
        reflect = self.mode & REFLECT
        if not reflect and (request[88:96] + answer[20:32]).strip(b"\0"):
            raise Wrong("fields of RFC 6038 that were not negotiated")
        if reflect and answer[20:22] != request[88:90]:
            raise Wrong("octets that Accept-Session is to repeat")
        sid = answer[4:20]
        keys = None
        if self.keys and self.mode & (AUTHENTICATED | ENCRYPTED):
            ecb = Cipher(algorithms.AES(sid), modes.ECB()).encryptor()
            keys = ecb.update(self.keys[0]) + ecb.finalize(), cbc(sid, ZERO, self.keys[1], False)
        self.sessions.append({
            "version": version & 15, "sport": sport, "port": struct.unpack(">H", answer[2:4])[0],
            "asked": rport, "padding": padding, "timeout": timeout / 2**32, "dscp": type_p >> 24,
            "sid": sid, "keys": keys, "reflected": struct.unpack(">H", request[90:92])[0],
            "probes": {}, "replies": [],
        })


def opened(mode, keys, packet, covered, mac_at):
    """The protected part in clear; its HMAC is checked."""
    aes, mac = keys
    if mode & AUTHENTICATED:
        covered = 16
    plain = cbc(aes, ZERO, packet[:covered], True)
    if hmac_sha1(mac, plain) != packet[mac_at:mac_at + 16]:
        raise Wrong("HMAC of a test packet")
    return plain + packet[covered:mac_at]


def probe_of(mode, keys, packet):
    if keys:
        plain = opened(mode, keys, packet, 32, 32)
        number, reserved, time, estimate, rest = struct.unpack(">I12sQH6s", plain)
        header = 112 if mode & SYMMETRICAL else 48
        reserved += rest + packet[48:header]
    else:
        number, time, estimate = struct.unpack(">IQH", packet[:14])
        header = 14
        if mode & SYMMETRICAL:
            header = 44 if mode & DSCP_ECN else 41
        reserved = packet[14:header]
    if reserved.strip(b"\0"):
        raise Wrong("reserved octets of a probe")
    return {"number": number, "time": time, "estimate": estimate, "padding": packet[header:],
            "octets": len(packet)}


def reply_of(mode, keys, packet):
    if keys:
        plain = opened(mode, keys, packet, 96, 96)
        fields = struct.unpack(">I12sQH6sQ8sI12sQH6sBB14s", plain)
        (number, r1, t3, estimate, r2, t2, r3, sequence, r4, t1, of_probe, r5, ttl, tos, r6) = fields
        reserved, header = r1 + r2 + r3 + r4 + r5 + r6, 112
    else:
        fields = struct.unpack(">IQH2sQIQH2sB", packet[:41])
        (number, t3, estimate, r1, t2, sequence, t1, of_probe, r2, ttl) = fields
        header, reserved, tos = 41, r1 + r2, 0
        if mode & DSCP_ECN:
            header, tos, reserved = 44, packet[41], reserved + packet[42:44]
    if reserved.strip(b"\0") or (tos and not mode & DSCP_ECN):
        raise Wrong("reserved octets of a reply")
    return {"number": number, "t3": t3, "t2": t2, "estimate": estimate, "sequence": sequence,
            "t1": t1, "of_probe": of_probe, "ttl": ttl, "tos": tos, "padding": packet[header:],
            "octets": len(packet)}


def packets(path):
    """Time, protocol, addresses, TOS, TTL and payload of every packet of a pcap file of Ethernet."""
    with open(path, "rb") as file:
        data = file.read()
    if data[:4] not in (b"\xd4\xc3\xb2\xa1", b"\x4d\x3c\xb2\xa1"):
        raise Wrong("not a pcap file")
    at = 24
    while at + 16 <= len(data):
        length = struct.unpack("<I", data[at + 8:at + 12])[0]
        packet, at = data[at + 16:at + 16 + length], at + 16 + length
        kind, packet = struct.unpack(">H", packet[12:14])[0], packet[14:]
        address = ipaddress.ip_address
        if kind == 0x800:
            head = (packet[0] & 15) * 4
            total = struct.unpack(">H", packet[2:4])[0]
            yield (packet[9], address(packet[12:16]), address(packet[16:20]), packet[1], packet[8],
                   packet[head:total])
        elif kind == 0x86DD:
            total = 40 + struct.unpack(">H", packet[4:6])[0]
            tos = (packet[0] & 15) << 4 | packet[1] >> 4
            yield (packet[6], address(packet[8:24]), address(packet[24:40]), tos, packet[7],
                   packet[40:total])


def decode(path, secrets, port=862):
    """The control connections of a capture with their sessions, and the test packets in those."""
    connections, expected = {}, {}
    tests = []
    for protocol, source, target, tos, ttl, octets in packets(path):
        if protocol == 6:
            sport, dport, number, _, offset, flags = struct.unpack(">HHIIBB", octets[:14])
            if port not in (sport, dport):
                continue
            from_server = sport == port
            key = (target, dport, source) if from_server else (source, sport, target)
            payload = octets[(offset >> 4) * 4:]
            if flags & 2:
                expected[key, from_server] = (number + 1) % 2**32
            connection = connections.setdefault(key, Connection(secrets))
            if payload and expected.get((key, from_server)) == number:
                stream = connection.server if from_server else connection.client
                stream.octets += payload
                expected[key, from_server] = (number + len(payload)) % 2**32
                connection.feed()
        elif protocol == 17:
            sport, dport, length = struct.unpack(">HHH", octets[:6])
            tests.append((source, sport, target, dport, tos, ttl, octets[8:length]))
    flows = collections.defaultdict(list)
    for test in tests:
        flows[test[:4]].append(test)
    for (client, _, server), connection in connections.items():
        for session in connection.sessions:
            mode, keys = connection.mode, session["keys"]
            out = (client, session["sport"], server, session["port"])
            for *_, tos, ttl, packet in flows.get(out, []):
                probe = probe_of(mode, keys, packet)
                session["probes"][probe["number"]] = {**probe, "ip_tos": tos, "ip_ttl": ttl}
            for *_, tos, ttl, packet in flows.get((server, session["port"], client, session["sport"]), []):
                reply = reply_of(mode, keys, packet)
                session["replies"].append({**reply, "ip_tos": tos, "ip_ttl": ttl})
    return list(connections.values())
