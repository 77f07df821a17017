"""A report on a web server's log: status by hour, the URLs that sent most, users, and their sessions.

    python examples/log_report.py                                 # 100,000 lines, made up here
    python examples/log_report.py --lines 2000000 --top 10
    DASK_SCHEDULER_ADDRESS=tcp://host:8786 python examples/log_report.py

The same seed makes the same log, and so the same report, wherever it is evaluated.
"""

import argparse
import itertools
import os
import random
from typing import NamedTuple

from parcoll import connect, parallel, progress

PAUSE = 30 * 60  # seconds without a request end a session


class Hit(NamedTuple):
    user: str
    second: int  # of the day
    url: str
    status: int
    nbytes: int


def parse(line):
    user, time, url, status, nbytes = line.split()
    hours, minutes, seconds = map(int, time.split(":"))
    return Hit(user, hours * 3600 + minutes * 60 + seconds, url, int(status), int(nbytes))


def sessions(user, hits):
    pauses = [b.second - a.second for a, b in itertools.pairwise(hits)]
    return user, 1 + sum(pause > PAUSE for pause in pauses)


def report(lines, top):
    hits = parallel(lines, name="log report").map(parse, on_error="skip").persist()
    broken = hits.stats.failed
    by_hour = hits.count_by(lambda hit: (hit.second // 3600, hit.status // 100))
    sent = hits.fold_by(lambda hit: hit.url, lambda n, hit: n + hit.nbytes, 0, lambda a, b: a + b)
    users = hits.distinct(lambda hit: hit.user).count()
    of_users = hits.group_by(lambda hit: hit.user).starmap(sessions)
    largest = sent.nlargest(top, lambda pair: pair[1])
    return by_hour, largest, users, of_users.nlargest(top, lambda pair: pair[1]), broken


def make_lines(number, seed):
    """Give a day's lines, in the order of their times; one in a thousand is broken."""
    chance = random.Random(seed)
    for n in range(number):
        second = n * 86_400 // number
        time = f"{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}"
        user, page = int(chance.paretovariate(0.7)) % 5000, int(chance.expovariate(0.02))
        status = chance.choices([200, 304, 404, 500], [90, 5, 4, 1])[0]
        size = chance.randrange(200, 50_000) if status == 200 else 0
        yield f"user{user} {time} /page/{page} {status} {'-' if chance.random() < 0.001 else size}"


def main():
    parser = argparse.ArgumentParser(description="Report on a web server's log.")
    parser.add_argument("--lines", type=int, default=100_000, help="default: %(default)s")
    parser.add_argument("--top", type=int, default=5, help="rows to print (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the log (default: %(default)s)")
    options = parser.parse_args()

    progress()  # a bar, where somebody watches
    # None is a cluster on this machine; an address is a dask scheduler anywhere.
    with connect(os.environ.get("DASK_SCHEDULER_ADDRESS")):
        lines = make_lines(options.lines, options.seed)
        by_hour, largest, users, of_users, broken = report(lines, options.top)

    for hour in range(24):
        counts = "".join(f"{by_hour[hour, status]:>8,} of {status}xx" for status in (2, 3, 4, 5))
        print(f"{hour:02}:00 {counts}")
    for url, nbytes in largest:
        print(f"{nbytes:>14,} bytes  {url}")
    for user, number in of_users:
        print(f"{number:>14,} sessions  {user}")
    print(f"{users:,} users; {broken:,} lines could not be read")


main()
