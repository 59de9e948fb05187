#!/usr/bin/env python3
"""Compares what GenOps evidence says with what a provider's own log says: nothing but the Python standard library.

    compare_evidence.py DIRECTORY PROVIDER_LOG [PROVIDER_LOG ..]

DIRECTORY is an evidence directory, a PROVIDER_LOG has one JSON object a line, as `genops-tests provider --log` writes
it. Every request that arrived must be told of by one unit that was let go, with the model and the server that it arrived
with; what was refused must not have arrived; what was let go and ran must have. It looks at no hash and no signature:
`verify_evidence.py` does. Ends with 0 if both say the same, with 1 if not (each difference is a line), with 2 if something
can't be read.
"""

import argparse
import collections
import json
import os
import struct
import sys

STOPPED = ("BLOCKED", "RATE_LIMITED")
# Requests that need no unit, where they have no body.
HARMLESS = ("GET", "HEAD", "OPTIONS")


def bundles(directory):
    """Published records by index: bundles of 256, the length of each record before it."""
    for folder, _, files in os.walk(os.path.join(directory, "tile", "entries")):
        for name in files:
            path = os.path.join(folder, name)
            # An index is cut into threes: x012/x345/678, and a bundle that is not full into 678.p/COUNT.
            place = os.path.relpath(path, os.path.join(directory, "tile", "entries"))
            index = int(place.split(".p")[0].replace("x", "").replace("/", "")) * 256
            with open(path, "rb") as file:
                raw = file.read()
            at = 0
            while at < len(raw):
                size = int.from_bytes(raw[at:at + 2], "big")
                yield index, raw[at + 2:at + 2 + size], place
                index, at = index + 1, at + 2 + size


def segments(directory):
    """Records of the write-ahead log, which may be ahead of what is published."""
    folder = os.path.join(directory, "wal")
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        if not name.isdigit():
            continue
        with open(os.path.join(folder, name), "rb") as file:
            raw = file.read()
        index, at = int(name), 512
        while at + 6 <= len(raw):
            size, check = struct.unpack_from(">HI", raw, at)
            if size == 0 and check == 0:
                break
            if size == 0:
                at += 14  # the end of a batch
                continue
            yield index, raw[at + 6:at + 6 + size], f"wal/{name}"
            index, at = index + 1, at + 6 + size


def records(directory):
    """Every record, by index."""
    found = {}
    for source in (bundles, segments):
        for index, raw, place in source(directory):
            if found.setdefault(index, raw) != raw:
                raise ValueError(f"{place}: record {index} is there twice, and differs")
    return {index: json.loads(raw) for index, raw in sorted(found.items())}


class Unit:
    """What the evidence says of one unit."""

    def __init__(self):
        self.index, self.what, self.result, self.code, self.count = None, {}, None, None, 1
        self.breached = self.released = False

    def add(self, index, entry):
        kind = entry["type"]
        if kind == "intent":
            self.index, self.what = index, entry.get("what", {})
        elif kind in ("decision", "folded"):
            self.index, self.what = index, entry.get("what", {})
            self.result, self.code = entry["dec"]["result"], entry["dec"].get("code")
            # Many alike may be one record, with their number.
            self.count = entry["fold"]["n"] if kind == "folded" else 1
        elif kind == "breach":
            self.breached = True
        elif kind == "release":
            self.released = True

    @property
    def model(self):
        return self.what.get("model")

    @property
    def server(self):
        return name_of(self.what.get("server"))

    @property
    def is_stopped(self):
        return self.result in STOPPED and not self.breached

    @property
    def is_open(self):
        """Some of it left, or an agent that was killed could not say what came of it: it may have arrived."""
        return self.result is None or self.breached or self.code == "x_not_prevented"

    def __str__(self):
        said = "BREACH" if self.breached else self.result or "intent"
        return f"record {self.index} ({said} {self.model or self.what.get('op') or 'nothing that was read'})"


class Arrival:
    """One request in a provider's log."""

    def __init__(self, place, entry):
        self.place, self.model, self.host = place, entry.get("model"), name_of(entry.get("host"))
        self.needs_unit = entry.get("method") not in HARMLESS or entry.get("body_bytes", 0) > 0

    def __str__(self):
        return f"{self.place} ({self.model or 'no model'} at {self.host})"


def name_of(server):
    """A server without its port."""
    return (server or "").rsplit(":", 1)[0].lower() if ":" in (server or "") else (server or "").lower()


def units_of(found):
    """Units in the order of their decisions, and what is wrong with the records themselves."""
    units, differences = collections.OrderedDict(), []
    indices = list(found)
    for before, after in zip(indices, indices[1:]):
        if after != before + 1:
            differences.append(f"records {before + 1} to {after - 1} are missing")
    for index, entry in found.items():
        if entry["seq"] != index:
            differences.append(f"record {index} says that it is record {entry['seq']}")
        if "awu" in entry or entry["type"] == "folded":
            units.setdefault(entry.get("awu", index), Unit()).add(index, entry)
    return [it for it in units.values() if it.index is not None], differences


def arrivals_of(paths):
    """Requests that arrived, and where the marker did."""
    arrivals, differences = [], []
    for path in paths:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                entry, place = json.loads(line), f"{os.path.basename(path)}:{number}"
                if entry["type"] == "request":
                    arrivals.append(Arrival(place, entry))
                elif entry["type"] == "marker":
                    differences.append(f"{place}: forbidden text arrived on connection {entry['connection']}")
    return arrivals, differences


class Comparison:
    """Pairs what arrived with what was let go, a model at a time."""

    def __init__(self, units, arrivals):
        self.differences = []
        self.by_model = collections.defaultdict(lambda: ([], [], [], []))
        # Let go without having been read: it may have been any request to that server.
        self.unread = collections.Counter()
        for unit in units:
            if unit.model is None:
                if not unit.is_stopped:
                    self.unread[unit.server] += unit.count
                continue
            gone, stopped, opened, _ = self.by_model[unit.model]
            (opened if unit.is_open else stopped if unit.is_stopped else gone).append(unit)
        for arrival in arrivals:
            if arrival.model is not None or arrival.needs_unit:
                self.by_model[arrival.model][3].append(arrival)
        self.absent, self.unknown = [], []

    def run(self):
        for model in list(self.by_model):
            self.compare(*self.by_model[model])
        self.name_the_rest()
        return self.differences

    def compare(self, gone, stopped, opened, arrived):
        gone, arrived = list(gone), list(arrived)
        for arrival in list(arrived):
            unit = next((it for it in gone if it.server in ("", arrival.host)), None)
            if unit:
                gone.remove(unit)
                arrived.remove(arrival)
        while gone and arrived:
            unit, arrival = gone.pop(0), arrived.pop(0)
            self.differences.append(f"{unit} was let go to {unit.server}, and arrived as {arrival}")
        for arrival in arrived:
            if stopped:
                self.differences.append(f"{stopped.pop(0)} was stopped, and it arrived: {arrival}")
            elif opened:
                opened.pop(0)
            elif not self.is_unread(arrival.host):
                self.unknown.append(arrival)
        self.absent.extend(it for it in gone if not it.released)

    def is_unread(self, host):
        """Takes one of what was let go unread, to this server or to one that is not told."""
        server = host if self.unread[host] > 0 else ""
        self.unread[server] -= 1
        return self.unread[server] >= 0

    def name_the_rest(self):
        """A unit that never arrived and a request that no unit tells of are one lie, where the server is the same."""
        for arrival in self.unknown:
            unit = next((it for it in self.absent if it.server in ("", arrival.host)), None)
            if unit:
                self.absent.remove(unit)
                self.differences.append(f"{unit} was let go, and what arrived has another model: {arrival}")
            else:
                self.differences.append(f"no record tells of what arrived: {arrival}")
        for unit in self.absent:
            self.differences.append(f"{unit} was let go, and never arrived")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("directory")
    parser.add_argument("logs", nargs="+", metavar="PROVIDER_LOG")
    given = parser.parse_args()
    try:
        found = records(given.directory)
        if not found:
            raise ValueError(f"{given.directory}: no records")
        units, differences = units_of(found)
        arrivals, marked = arrivals_of(given.logs)
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        print(f"can't be compared: {error}", file=sys.stderr)
        return 2
    differences += marked + Comparison(units, arrivals).run()
    for difference in differences:
        print(difference)
    told = collections.Counter()
    for unit in units:
        told[unit.result or "intent"] += unit.count
    told = ", ".join(f"{count} {result}" for result, count in sorted(told.items())) or "none"
    print(f"{sum(it.count for it in units)} units ({told}), {len(arrivals)} requests arrived: {len(differences)} differences")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
