#!/usr/bin/env python3
"""A second, independent verifier of GenOps evidence: nothing but the Python standard library.

    verify_evidence.py DIRECTORY [--key VKEY] [--checkpoint FILE]
    verify_evidence.py --proof FILE --record FILE --key VKEY [--witness VKEY ..]

Ends with 0 where everything holds, 1 where something does not (naming the file), 2 on wrong usage.
It shows that the format needs no magic: RFC 6962 trees, C2SP tiles, signed notes, Ed25519, JSON.
"""
import argparse, base64, hashlib, json, os, re, struct, sys
# --- Ed25519 (RFC 8032 section 5.1.7), affine enough to read, slow ---------------------------------
P = 2**255 - 19; L = 2**252 + 27742317777372353535851937790883648493; D = -121665 * pow(121666, P - 2, P) % P
def point_add(a, b):
    (x1, y1, z1, t1), (x2, y2, z2, t2) = a, b; e, f, g, h = (y1 - x1) * (y2 - x2) % P, (y1 + x1) * (y2 + x2) % P, 2 * t1 * t2 * D % P, 2 * z1 * z2 % P
    i, j, k, l = f - e, h - g, h + g, f + e; return i * j % P, k * l % P, j * k % P, i * l % P
def point_mul(n, point):
    result = (0, 1, 1, 0)
    while n: result, point, n = point_add(result, point) if n & 1 else result, point_add(point, point), n >> 1
    return result
def point_read(raw):
    y = int.from_bytes(raw, "little"); sign, y = y >> 255, y & (2**255 - 1)
    if y >= P: return None
    xx = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P; x = pow(xx, (P + 3) // 8, P)
    if x * x % P != xx: x = x * pow(2, (P - 1) // 4, P) % P
    if x * x % P != xx or (x == 0 and sign): return None
    x = x if x & 1 == sign else P - x; return x, y, 1, x * y % P
BASE = point_read((4 * pow(5, P - 2, P) % P).to_bytes(32, "little"))
def ed25519_verify(key, message, signature):
    if len(signature) != 64: return False
    a, r, s = point_read(key), point_read(signature[:32]), int.from_bytes(signature[32:], "little")
    if a is None or r is None or s >= L: return False
    h = int.from_bytes(hashlib.sha512(signature[:32] + key + message).digest(), "little") % L
    left, right = point_mul(s, BASE), point_add(r, point_mul(h, a)); return all((left[i] * right[2] - right[i] * left[2]) % P == 0 for i in (0, 1))
# --- Signed notes and checkpoints ------------------------------------------------------------------
class Bad(Exception): """file, what is wrong with it"""
def unbase64(text):
    raw = base64.b64decode(text, validate=True)
    if base64.b64encode(raw).decode() != text: raise ValueError("base64")
    return raw
def parse_vkey(text):
    name, digits, data = text.rstrip("\n").split("+", 2); raw = unbase64(data); kind, key = raw[0], raw[1:]
    ident = hashlib.sha256(name.encode() + b"\n" + raw).digest()[:4]
    if kind not in (1, 4) or len(key) != 32 or not name or digits != ident.hex(): raise ValueError("vkey")
    return name, ident, kind, key
def parse_note(raw):
    text = raw.decode()
    if any(c < " " and c != "\n" for c in text) or not text.endswith("\n"): raise ValueError("note")
    (body, lines), signatures = text[:-1].rsplit("\n\n", 1), []
    for line in lines.split("\n"):
        dash, name, data = line.split(" "); blob = unbase64(data)
        if dash != "\u2014" or not name or len(blob) < 5: raise ValueError("signature line")
        signatures.append((name, blob[:4], blob[4:]))
    return body + "\n", signatures
def signed_by(note, vkey):
    (name, ident, kind, key), found = vkey, False
    for blob in [blob for signer, by, blob in note[1] if (signer, by) == (name, ident)]:
        text = note[0].encode()
        if kind == 4: text, blob = b"cosignature/v1\ntime %d\n" % int.from_bytes(blob[:8], "big") + text, blob[8:]
        if not ed25519_verify(key, text, blob): raise ValueError("signature does not fit")
        found = True
    return found
def parse_checkpoint(raw):
    note = parse_note(raw); origin, size, root = note[0][:-1].split("\n")
    if not re.fullmatch("0|[1-9][0-9]*", size) or not origin or len(unbase64(root)) != 32: raise ValueError("checkpoint")
    return note, origin, int(size), unbase64(root)
# --- Merkle tree (RFC 6962 section 2.1) and tiles ---------------------------------------------------
def leaf(record): return hashlib.sha256(b"\0" + record).digest()
def node(left, right): return hashlib.sha256(b"\1" + left + right).digest()
def root_of(hashes):
    if not hashes: return hashlib.sha256().digest()
    while len(hashes) > 1:  # a lone last hash moves up unchanged
        up = [node(hashes[i], hashes[i + 1]) for i in range(0, len(hashes) - 1, 2)]; hashes = up + ([hashes[-1]] if len(hashes) % 2 else [])
    return hashes[0]
def tile_name(level, index, width):
    digits = str(index).zfill(-(-len(str(index)) // 3) * 3); name = "tile/%s/%s" % (level, re.sub(r"(\d{3})(?=\d)", r"x\1/", digits))
    return name if width == 256 else "%s.p/%d" % (name, width)
def split_bundle(raw):
    records, at = [], 0
    while at < len(raw):
        size = int.from_bytes(raw[at:at + 2], "big")
        if at + 2 + size > len(raw): raise ValueError("cut at byte %d" % at)
        records.append(raw[at + 2:at + 2 + size]); at += 2 + size
    return records
# --- Write-ahead segments --------------------------------------------------------------------------
CRC = list(range(256))
for _ in range(8): CRC = [n >> 1 ^ (0x82F63B78 if n & 1 else 0) for n in CRC]
def crc32c(raw, crc=0xFFFFFFFF):
    for byte in raw: crc = crc >> 8 ^ CRC[(crc ^ byte) & 255]
    return crc ^ 0xFFFFFFFF
def mark_at(raw, at, first):
    if at + 14 > len(raw): return None
    zero, crc, own, batch = struct.unpack_from(">HIII", raw, at)
    return batch if (zero, own, crc) == (0, at, crc32c(b"mark" + struct.pack(">QII", first, own, batch))) else None
def scan_segment(raw):
    if len(raw) < 512 or raw[:16] != b"genops-wal 1\n\0\0\0": raise ValueError("not a segment")
    first, length, crc = struct.unpack_from(">QII", raw, 16)
    if crc != crc32c(raw[:28]) or raw[32:512].strip(b"\0") or length != len(raw): raise ValueError("header")
    records, at, batch, broken, size = [], 512, 512, False, 0
    while at + 6 <= len(raw):
        size, crc = struct.unpack_from(">HI", raw, at)
        if size == 0 and crc == 0: break
        if size == 0 and mark_at(raw, at, first) == batch: at += 14; batch = at; continue
        record = raw[at + 6:at + 6 + size]
        if size and len(record) == size and crc == crc32c(struct.pack(">Q", first + len(records)) + record):
            records.append(record); at += 6 + size; continue
        broken, size = True, size or 8; break
    used = len(raw.rstrip(b"\0"))
    if broken or used > at: torn(raw, first, at, size if broken else 0, max(used, at))
    return first, records, not broken and used <= at == batch
def torn(raw, first, at, size, used):
    """A write cut by a crash leaves holes along sectors in the last batch; anything else is damage."""
    mark, end = 0, max(used, min(at + 6 + size, len(raw)))
    for place in range(at + 1, used):
        if raw[place:place + 2] == b"\0\0" and raw[place + 6:place + 10] == struct.pack(">I", place):
            batch = mark_at(raw, place, first)
            if batch is not None and batch > at: raise ValueError("damaged at byte %d" % at)
            if batch is not None: end = mark = place + 14
    if end < used or not mark and 0 < used % 512 < 504: raise ValueError("damaged at byte %d" % at)
    holes, before, start = 0, None, at
    while start < end:
        stop = min((start // 512 + 1) * 512, end, len(raw)); part = raw[start:stop]; hole = not part.strip(b"\0"); holes += hole
        if before is not None and (hole and before.strip(b"\0") and not before[-8:].strip(b"\0")
                                   or not hole and not before.strip(b"\0") and not part[:8].strip(b"\0")):
            raise ValueError("damaged at byte %d" % at)
        before, start = part, stop
    if not holes: raise ValueError("damaged at byte %d" % at)
# --- What the records say ----------------------------------------------------------------------------
PHASES = ("intent", "decision", "reservation", "reconciliation", "release")
class Records:
    def __init__(self): self.principals, self.units, self.problems, self.policies, self.first, self.blobs = {}, {}, [], set(), None, []; self.last, self.crash, self.breaches = None, False, []; self.left, self.found = {}, {}; self.folded, self.folded_stopped = 0, 0
    def bad(self, index, what): self.problems.append((self.file, "record %d: %s" % (index, what)))
    def add(self, index, raw, file):
        try: self.file = file; self.check(index, json.loads(raw))
        except (ValueError, KeyError, TypeError, AttributeError): self.bad(index, "not a record")
    def check(self, index, entry):
        kind, who, self.first = entry["type"], entry.get("who"), index if self.first is None else self.first
        if kind == "agent_start": self.crash = self.last not in (None, "agent_stop")
        self.last, self.crash = kind, self.crash and kind != "decision"  # what a killed agent left comes before the next decides
        if kind == "gap" and "records" in entry.get("det", {}): self.first = -1  # what units went through may be among what was lost
        if entry["seq"] != index or entry["v"] != 1: self.bad(index, "number or version")
        if who and "pseq" in who:
            before = self.principals.get(who["prin"], (0, None))
            if (who["pseq"] - 1, who.get("pprev")) != before and not (self.first and before == (0, None)): self.bad(index, "principal's number")
            self.principals[who["prin"]] = (who["pseq"], index)
        if kind in ("policy_loaded", "heads") and "config" in entry.get("det", {}): self.blobs.append((index, entry["det"]["config"]))
        if kind == "policy_loaded": self.policies.add("sha256:" + entry.get("det", {}).get("hash", "").replace("sha256:", ""))
        if kind == "breach": self.breach(index, entry)
        if kind == "folded": self.fold(index, entry)
        if kind == "balances": self.balances(index, entry)
        if "awu" in entry and kind in PHASES: self.unit(index, kind, entry, self.units.setdefault(entry["awu"], {}))
    def balances(self, index, entry):
        """What a stop leaves of each budget is what the next start finds, where nothing lies between the two."""
        part, at, lost = entry["bal"], entry["det"]["at"], "lost" in entry["det"]
        said = self.left if at == "stop" else self.found
        if part["part"] == 0: said.clear()
        said.update({tuple(item[:3]): item[4] + item[5] for item in part["list"]})
        if at == "start" and part["part"] + 1 == part["parts"]:
            if self.left and not self.crash and not lost and self.found != self.left: self.bad(index, "balances differ from those of the stop before")
            self.left.clear()
    def breach(self, index, entry):
        """Bytes left of a unit that was said to be stopped: it counts as refused no more."""
        unit = self.units.get(entry["awu"], {}); self.breaches.append((index, entry["awu"]))
        if unit.get("result") in ("BLOCKED", "RATE_LIMITED"): unit["result"] = "BREACHED"
        elif not unit and self.folded_stopped > 0: self.folded_stopped -= 1; self.units[entry["awu"]] = {"result": "BREACHED"}; self.folded -= 1
        elif unit.get("result") != "BREACHED" and not self.first: self.bad(index, "breach of what was not stopped")
    def fold(self, index, entry):
        """Units of which there is no more than how many they were."""
        count, dec = entry["fold"], entry["dec"]
        if count["n"] < 1 or count["first"] > count["last"] or "awu" in entry or entry.get("bud"): self.bad(index, "count")
        if (dec["result"] == "ALLOWED") == ("code" in dec): self.bad(index, "reason and result")
        if not self.first and dec["bundle"] not in self.policies: self.bad(index, "policies never loaded")
        self.folded += count["n"]; self.folded_stopped += count["n"] if dec["result"] in ("BLOCKED", "RATE_LIMITED") else 0
    def results(self): return [unit.get("result") for unit in self.units.values()]
    def undecided(self): return sum("intent" in unit and "decision" not in unit for unit in self.units.values())
    def effect(self, index, entry, unit):
        """What was about to be refused is refused only where nothing of it left."""
        dec, stopped = entry["dec"], entry["dec"]["result"] in ("BLOCKED", "RATE_LIMITED")
        if "intent" not in unit: return
        if stopped and entry.get("det", {}).get("above_bytes") != "0": self.bad(index, "refused, and something may have left")
        if not stopped and dec.get("code") != "x_not_prevented": self.bad(index, "about to be refused, and permitted")
    def unit(self, index, kind, entry, unit):
        if kind in unit: self.bad(index, "second %s of the unit" % kind)
        unit[kind] = sorted((a.get("name") or "", a["res"]) for a in entry.get("bud", []))
        if kind == "decision":
            dec = entry["dec"]; unit["result"] = dec["result"]
            if (dec["result"] == "ALLOWED") == ("code" in dec): self.bad(index, "reason and result")
            self.effect(index, entry, unit)
            if not self.first and dec["bundle"] not in self.policies: self.bad(index, "policies never loaded")
        elif kind in ("reconciliation", "release") and not self.first and not self.crash:
            if "decision" not in unit or "reservation" not in unit or unit[kind] not in ([], unit["reservation"]): self.bad(index, "phases")
            if kind == "reconciliation" and unit.get("result") in ("BLOCKED", "RATE_LIMITED"): self.bad(index, "ran")
# --- The directory --------------------------------------------------------------------------------------
class Log:
    def __init__(self, root): self.root, self.problems, self.seen, self.unlike, self.records = root, [], set(), [], Records()
    def bad(self, name, what): self.problems.append((name, what))
    def read(self, name):
        self.seen.add(name)
        try: return open(os.path.join(self.root, name), "rb").read()
        except FileNotFoundError: raise Bad(name, "missing") from None
    def parsed(self, name, parse):
        raw = self.read(name)
        try: return parse(raw)
        except (ValueError, IndexError, TypeError, struct.error) as error: raise Bad(name, "broken: %s" % error) from None
    def check_note(self, name, note):
        if not self.parsed(name, lambda _: any(signed_by(note, key) for key in self.keys) and len(note[1]) == 1): raise Bad(name, "not signed")
    def checkpoint(self, name):
        note, origin, size, root = self.parsed(name, parse_checkpoint); self.check_note(name, note)
        if origin != self.origin: raise Bad(name, "of another log")
        return size, root
    def identity(self, pinned):
        raw = self.parsed("log.vkey", lambda raw: raw.decode()); self.keys = [self.parsed("log.vkey", lambda raw: parse_vkey(raw.decode()))]
        self.origin, previous = self.keys[0][0], raw.rstrip("\n")
        if raw != previous + "\n": raise Bad("log.vkey", "not one line")
        while os.path.exists(os.path.join(self.root, "rotations/%d" % len(self.keys))):
            name = "rotations/%d" % len(self.keys); note = self.parsed(name, parse_note); lines = note[0].split("\n")
            new = self.parsed(name, lambda _: parse_vkey(lines[2]))
            good = self.parsed(name, lambda _: [ident for _, ident, _ in note[1]] == [self.keys[-1][1], new[1]] and signed_by(note, self.keys[-1]) and signed_by(note, new))
            if not good or lines[:2] != [self.origin + "/rotation", previous] or lines[3:] != [""]: raise Bad(name, "not a rotation")
            previous = lines[2]; self.keys.append(new)
        if pinned and parse_vkey(pinned) not in self.keys: self.bad("log.vkey", "another key than was given")
    def verify(self, pinned=None, given=()):
        self.identity(pinned); heads = {} if os.path.exists(os.path.join(self.root, "checkpoint")) else {
            int(name): self.checkpoint("heads/" + name) for _, _, found in os.walk(os.path.join(self.root, "heads")) for name in found if name.isdigit()}
        size, root = heads[max(heads)] if heads else self.checkpoint("checkpoint")
        first = self.pruned() if os.path.exists(os.path.join(self.root, "pruned")) else 0
        segments = [] if heads else self.parsed("wal/segments", lambda raw: [int(line) for line in re.fullmatch(
            "genops-wal 1\n((?:(?:0|[1-9][0-9]*)\n)*)", raw.decode())[1].split()])
        ahead, leaves = {}, []
        if sorted(set(segments)) != segments: raise Bad("wal/segments", "not in order")
        for name, start, follows in [("wal/%020d" % start, start, follows) for start, follows in zip(segments, segments[1:] + [None])]:
            begin, records, whole = self.parsed(name, scan_segment); end = begin + len(records)
            if begin != start or begin > max(ahead, default=size - 1) + 1: self.bad(name, "records missing")
            if end < size if follows is None else not whole or end != follows: self.bad(name, "ends too early")
            for index, record in enumerate(records, begin):
                if ahead.setdefault(index, (record, name))[0] != record: self.bad(name, "record %d differs" % index)
        for bundle in range(-(-size // 256)): self.bundle(bundle, min(256, size - bundle * 256), first, leaves, ahead)
        self.tree(leaves, size, root, given, first)
        for index in sorted(index for index in ahead if index >= size): leaves.append(leaf(ahead[index][0])); self.records.add(index, *ahead[index])
        for covers, head in heads.items(): self.head("heads/%020d" % covers, covers, head, leaves, first)
        self.strays(leaves, size, first, bool(segments))
        for index, name in self.records.blobs:
            if name.replace("sha256:", "blob/") not in self.seen: self.bad(name.replace("sha256:", "blob/"), "missing, record %d names it" % index)
    def head(self, name, covers, head, leaves, first):
        """A tree head of a shipped copy, and the incomplete tiles that came with it."""
        if name not in self.seen or head != (covers, root_of(leaves[:covers])): self.bad(name, "root or size differs")
        level, hashes = 0, leaves[:covers]
        while hashes:
            part = hashes[len(hashes) // 256 * 256:]; tile = tile_name(level, len(hashes) // 256, len(part))
            if part and self.read(tile) != b"".join(part): self.bad(tile, "hashes differ")
            if part and level == 0 and covers // 256 * 256 >= first and [leaf(record) for record in self.parsed(
                    tile_name("entries", covers // 256, len(part)), split_bundle)] != part: self.bad(name, "records differ")
            hashes = [root_of(hashes[i:i + 256]) for i in range(0, len(hashes) - 255, 256)]; level += 1
    def pruned(self):
        note = self.parsed("pruned", parse_note); self.check_note("pruned", note)
        return self.parsed("pruned", lambda _: int(re.fullmatch(re.escape(self.origin) + "/pruned\n([0-9]+)\n", note[0])[1]))
    def bundle(self, bundle, width, first, leaves, ahead):
        tile = tile_name(0, bundle, width); raw = self.read(tile); expected = [raw[i:i + 32] for i in range(0, len(raw), 32)]
        if len(raw) != 32 * width: return self.bad(tile, "length")
        if bundle * 256 < first: return leaves.extend(expected)
        name = tile_name("entries", bundle, width); records = self.parsed(name, split_bundle)
        found = [leaf(record) for record in records]; leaves.extend(found)
        if found != expected: self.unlike.append((tile, name))
        for index, record in enumerate(records, bundle * 256):
            if ahead.get(index, (record,))[0] != record: self.bad(ahead[index][1], "record %d differs" % index)
            self.records.add(index, record, name)
    def tree(self, leaves, size, root, given, first):
        right = root_of(leaves) == root  # where not, what lies below a hash was changed, otherwise the hash
        for above, below in self.unlike: self.bad(above if right else below, "records and hashes differ")
        for kept in range(1024, size + 1, 1024):
            name = "checkpoints/%015d" % kept
            if self.checkpoint(name) != (kept, root_of(leaves[:kept])): self.bad(name, "root or size differs")
        level, hashes = 0, leaves
        while len(hashes) >= 256:
            level, hashes = level + 1, [root_of(hashes[i:i + 256]) for i in range(0, len(hashes) - 255, 256)]
            for index in range(-(-len(hashes) // 256)):
                part = hashes[index * 256:index * 256 + 256]; name = tile_name(level, index, len(part))
                raw, span = self.read(name), 256 ** level; differ = [at for at, value in enumerate(part) if raw[at * 32:at * 32 + 32] != value]
                if differ and not right and (index * 256 + differ[0]) * span < first: self.bad(tile_name(level - 1, index * 256 + differ[0], 256), "hashes differ")
                elif differ and right or len(raw) != 32 * len(part): self.bad(name, "hashes differ")
        if not right: self.bad("checkpoint", "root differs")
        for path in given:
            note, origin, covers, promised = parse_checkpoint(open(path, "rb").read())
            if origin != self.origin or not any(signed_by(note, key) for key in self.keys): self.bad(path, "not of this log")
            elif covers > size or root_of(leaves[:covers]) != promised: self.bad(path, "the log was cut or rewritten")
    def strays(self, leaves, size, first, is_open):
        for folder, _, files in os.walk(self.root):
            for file in files:
                name = os.path.relpath(os.path.join(folder, file), self.root)
                if name in self.seen or name.startswith(("tmp/", "keys/")): continue  # secrets are not evidence
                if name.startswith("blob/") and hashlib.sha256(self.read(name)).hexdigest() == name[5:]: continue
                if not (is_open and self.leftover(name, leaves, size)): self.bad(name, "does not belong to this log")
    def leftover(self, name, leaves, size):
        """What a crash between writing and signing leaves: nothing that the records do not hold."""
        raw = self.read(name); tile = re.fullmatch(r"tile/(entries|\d+)/((?:x\d{3}/)*\d{3})(?:\.p/(\d+))?", name)
        try:
            if name.startswith("checkpoints/"): kept, root = self.checkpoint(name); return name == "checkpoints/%015d" % kept and root_of(leaves[:kept]) == root and kept <= len(leaves)
            if name.startswith("wal/"): begin, records, _ = scan_segment(raw); return name == "wal/%020d" % begin and [leaf(r) for r in records] == leaves[begin:begin + len(records)] and (not records or begin + len(records) <= size)
            index, width = int(tile[2].replace("x", "").replace("/", "")), int(tile[3] or 256)
            level = 0 if tile[1] == "entries" else int(tile[1]); span = 256 ** level
            hashes = [root_of(leaves[i * span:(i + 1) * span]) for i in range(index * 256, index * 256 + width) if (i + 1) * span <= len(leaves)]
            found = [leaf(r) for r in split_bundle(raw)] if tile[1] == "entries" else [raw[i:i + 32] for i in range(0, len(raw), 32)]
            return name == tile_name(tile[1], index, width) and len(hashes) == width and found == hashes
        except (ValueError, TypeError, Bad): return False
def check_proof(proof, record, keys, witnesses):
    text = proof.decode(); head, note = text.split("\n\n", 1); lines = head.split("\n")
    if lines.pop(0) != "c2sp.org/tlog-proof@v1": raise ValueError("not a proof")
    if lines[0].startswith("extra "): lines.pop(0)
    index = int(re.fullmatch("index (0|[1-9][0-9]*)", lines.pop(0))[1]); path = [unbase64(line) for line in lines]
    parsed, _, size, root = parse_checkpoint(note.encode())
    if not any(signed_by(parsed, key) for key in keys): raise ValueError("not signed by the log")
    if not all(signed_by(parsed, key) for key in witnesses): raise ValueError("not cosigned")
    if index >= size or climb(index, size, leaf(record), path) != root: raise ValueError("the record is not in the tree")
def climb(index, size, value, path):
    if size == 1: return value if not path else b""
    half = 1 << (size - 1).bit_length() - 1  # the largest power of two below the size
    if index < half: return node(climb(index, half, value, path[:-1]), path[-1])
    return node(path[-1], climb(index - half, size - half, value, path[:-1]))
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("directory", nargs="?"); parser.add_argument("--key"); parser.add_argument("--checkpoint", action="append", default=[])
    parser.add_argument("--proof"); parser.add_argument("--record"); parser.add_argument("--witness", action="append", default=[])
    given = parser.parse_args()
    if given.proof:
        try: check_proof(open(given.proof, "rb").read(), open(given.record, "rb").read(), [parse_vkey(given.key)], list(map(parse_vkey, given.witness)))
        except (ValueError, TypeError, IndexError) as error: print("%s: %s" % (given.proof, error)); return 1
        except OSError as error: print(error, file=sys.stderr); return 2
        print("verified"); return 0
    if not given.directory or not os.path.isdir(given.directory): print("no such directory", file=sys.stderr); return 2
    log = Log(given.directory)
    try: log.verify(given.key, given.checkpoint)
    except Bad as error: log.bad(*error.args)
    except OSError as error: print(error, file=sys.stderr); return 2
    problems = log.problems + log.records.problems
    for name, what in problems: print("%s: %s" % (name, what))
    for index, awu in log.records.breaches: print("BREACH record %d: unit %s left after it was said to be stopped" % (index, awu))
    if log.records.folded: print("counted %d units that have no records of their own" % log.records.folded)
    if log.records.undecided(): print("admitted %d refusals without an outcome (gaps)" % log.records.undecided())
    print("NOT VERIFIED" if problems else "verified"); return 1 if problems else 0
if __name__ == "__main__": sys.exit(main())
