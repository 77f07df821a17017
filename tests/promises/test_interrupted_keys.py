"""Ctrl-C in each phase of what brings elements together by key ends it, and the next answer is right."""

from __future__ import annotations

from scripts import Scripts


def test_ctrl_c_in_each_phase(scripts: Scripts) -> None:
    text = """
        import collections, os, signal, threading, time
        from parcoll import parallel

        rows = [(f"k{i * 7919 % 3000}", i) for i in range(30_000)]
        table = {f"k{i}": i for i in range(0, 3000, 3)}

        def key(row):
            return row[0]

        groups = collections.defaultdict(list)
        for row in rows:
            groups[row[0]].append(row)

        def add(count, row):
            return count + 1

        works = {
            "group_by": (lambda: list(parallel(rows).group_by(key)), list(groups.items())),
            "a step behind": (
                lambda: list(parallel(rows).group_by(key).map(lambda pair: len(pair[1]))),
                list(map(len, groups.values())),
            ),
            "sorted": (lambda: list(parallel(rows).sorted(key)), sorted(rows, key=key)),
            "distinct": (lambda: list(parallel(rows).distinct(key)), [group[0] for group in groups.values()]),
            "count_by": (lambda: list(parallel(rows).count_by(key).items()),
                         list(collections.Counter(map(key, rows)).items())),
            "fold_by": (lambda: list(parallel(rows).fold_by(key, add, 0, int.__add__)),
                        [(name, len(group)) for name, group in groups.items()]),
            "nlargest": (lambda: parallel(rows).nlargest(5, key), sorted(rows, key=key, reverse=True)[:5]),
            "join": (lambda: list(parallel(rows).join(table.items(), key, key).map(lambda two: two[1][1])),
                     [table[row[0]] for row in rows if row[0] in table]),
        }
        interrupted = 0
        for name, (work, right) in works.items():
            assert work() == right, name
            started = time.perf_counter()
            assert work() == right, name
            took = time.perf_counter() - started
            for part in (0.1, 0.3, 0.5, 0.7, 0.9):
                timer = threading.Timer(part * took, os.kill, (os.getpid(), signal.SIGINT))
                try:
                    timer.start()
                    assert work() == right, name
                    timer.join()
                    time.sleep(1)  # it comes while this sleeps at the latest
                except KeyboardInterrupt:
                    interrupted += 1
            assert work() == right, name
        print(interrupted)
        """
    assert scripts.run_file(text) == "40\n"
