"""What all tests share: clusters to run on, and the check that nothing of a module's outlives it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import leaks
import named_memory
import pytest
from leaks import new_remains, remains
from scripts import Scripts

from parcoll import Connection, connect


def pytest_configure(config: pytest.Config) -> None:
    """Give this run a temporary directory of its own, so that what is left there is its own doing."""
    folder = tempfile.mkdtemp(prefix="test-run-")
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    os.environ[named_memory.VARIABLE] = folder
    leaks.named_memory = named_memory.NamedMemory(folder, folder)
    # A shell has what it starts in the background ignore Ctrl-C, and that is inherited by what the tests
    # start; a handler is not.
    signal.signal(signal.SIGINT, signal.default_int_handler)


LEFT_BEHIND = 70  # an exit code that pytest has no meaning for
left_behind: list[str] = []

# What takes a minute and more, on two cores: that begins first where several processes share the tests out.
LONGEST = (
    *("promises/test_reduce_fold.py", "promises/test_same_entries.py", "promises/test_same_contexts.py"),
    *("promises/test_same_modules.py", "promises/test_second_try.py", "cluster/test_reconnect.py"),
    *("cluster/test_hosts.py", "promises/test_script_classes.py", "faults/test_faults.py"),
    *("promises/test_streaming.py", "promises/test_deadly_elements.py", "promises/test_timeouts.py"),
    *("promises/test_sources.py", "promises/test_ends_of_workers.py", "promises/test_traces.py"),
    *("wire/test_exceptions_of_packages.py", "cluster/test_lost_cluster.py", "cluster/test_bare_cluster.py"),
    *("watch/test_progress.py", "promises/test_same_world.py", "promises/test_resuming.py"),
    *("promises/test_shutdown.py", "promises/test_ends_of_scripts.py", "promises/test_memory.py"),
    *("promises/test_keyed.py", "checkpoint/test_what_comes_again.py", "checkpoint/test_failed_again.py"),
    *("simulation/test_simulation.py", "faults/test_written_files.py", "cluster/test_losses.py"),
)

# Cases of long tests that other cases of the same test show too: `nox -s slow` runs them.
REPEATED = {
    "promises/test_same_modules.py": r"\[bare--timeout\]|each_state\[bare-\]|\[bare-not reloaded\]",
    "promises/test_same_world.py": r"\[bare--timeout\]|\[no_debug_ranges\]",
    "promises/test_same_logging.py": r"\[bare--timeout\]",
    **dict.fromkeys(
        ("promises/test_same_parts.py", "promises/test_same_entries.py", "promises/test_lost_modules.py"),
        r"\[bare--timeout",
    ),
    "promises/test_same_settings.py": r"\[bare--timeout",
    "promises/test_odd_objects.py": r"\[1-",
    "promises/test_second_try.py": r"killed\[remote-(clients_task|plugin|variable)\]|\[remote-worker\]"
    r"|beside_it\[remote-clients_task\]|killed\[local-clients_task\]",
    "promises/test_script_classes.py": r"\[(-c|-m|stdin)-(world|classes)\]|\[timeout-classes\]",
    "promises/test_resuming.py": r"until_it_is_done\[(0|25)\]",
    "promises/test_memory.py": r"what_grows_from_element",
    "promises/test_large_folds.py": r"killed\[in a later one\]|cluster-(210|5000)-",
    "promises/test_timeouts.py": r"an_element_that_was_stopped_is_tried_again",
    "evaluation/test_sizing.py": r"\[unsized\]|\[4000\]",
    "promises/test_deadly_elements.py": r"left_out\[(abort|exit|leave|terminate)-(1|40)\]"
    r"|left_out\[segfault-1\]|ten_thousand\[(exit|segfault)\]|of_a_fold\[(reduce from 0|fold)\]",
    "promises/test_collection.py": r"3000_maps_works\[inline\]",
    "cluster/test_lost_cluster.py": r"on_another_one\[host\]|memory_survive\[scheduler\]|it_dies\[host\]"
    r"|begin_again\[scheduler\]",
    "cluster/test_evaluations_at_once.py": r"\[remote\]",
    "cluster/test_hosts.py": r"\[(unplug-both workers|isolate-one worker|unplug-the client|prohibit)\]"
    r"|\[isolate-both workers\]|says_so\[the scheduler\]",
    "cluster/test_reconnect.py": r"several_threads_wait|a_cluster_object_is_asked|a_user_s_client_stays"
    r"|count_unordered_and_bags",
    "cluster/test_restarted.py": r"with_reconnect_it_goes_on",
    "promises/test_waiting.py": r"one_by_one\[inline\]",
    "promises/test_clocks.py": r"is_up\[shifts1\]",
    "faults/test_faults.py": r"three-times|stopped-for-a-while.*(count|unordered|foreach)"
    r"|all-workers-at-once.*(count|unordered)|scheduler.*(count|unordered|fold|last-partition)"
    r"|the-host.*(count|unordered|reading-what|while-the-iterator)",
}


# Processes, hosts and disks that fail: what the kernel and dask do then does not depend on Python's version.
FAILING = (
    *("faults/test_faults.py", "faults/test_starts.py", "faults/test_chaos.py", "cluster/test_hosts.py"),
    *("cluster/test_reconnect.py", "cluster/test_restarted.py", "cluster/test_lost_cluster.py"),
    *("cluster/test_lost_scheduler.py", "cluster/test_losses.py", "cluster/test_kept_and_lost.py"),
    *("promises/test_resuming.py", "promises/test_lost_workers.py", "promises/test_memory.py"),
    "dask_facts/test_what_dask_keeps.py",
)


# What any Python answers alike, shared out so that both ends take as long. With the oldest Python:
ALIKE = (
    *("promises/test_sources.py", "wire/test_without_shared_memory.py", "local/test_dashboard.py"),
    *("promises/test_large_folds.py", "cluster/test_broken_workers.py", "evaluation/test_joins.py"),
    *("local/test_temporary_directories.py", "cluster/test_captured_elsewhere.py"),
    *("cluster/test_held_values.py", "cluster/test_targets.py", "cluster/test_waiting_for_a_worker.py"),
    *("evaluation/test_sizing.py", "promises/test_streaming.py", "promises/test_nested.py"),
    "promises/test_slow_sources.py",
    *("promises/test_failing_elements.py", "promises/test_many_errors.py", "promises/test_rates.py"),
    *("cluster/test_bare_cluster.py", "cluster/test_engines.py", "local/test_work_of_a_host.py"),
    *("local/test_end_of_a_host.py", "promises/test_setup_failures.py", "promises/test_told.py"),
    *("promises/test_retries.py", "promises/test_resuming_again.py", "evaluation/test_seams.py"),
    *("promises/test_timeouts.py", "promises/test_collection.py", "wire/test_shared_arrays.py"),
    *("worker/test_reports.py", "promises/test_coming_from.py", "test_messages.py"),
    *("promises/test_timeouts_in_threads.py", "promises/test_interrupted_keys.py"),
    *("promises/test_packed_keys.py", "promises/test_second_try.py", "promises/test_descriptions.py"),
    *("promises/test_errors.py", "promises/test_endless_texts.py", "promises/test_security.py"),
    *("cluster/test_bags.py", "cluster/test_evaluations_at_once.py"),
    *("dask_facts/test_what_a_worker_forgets.py", "watch/test_stats.py"),
    *("wire/test_data_files.py", "wire/test_captured_data.py"),
)

# And with the newest: what is shown, files, checkpoints, random chains, what evaluations leave behind.
ALIKE_NEWEST = (
    *("watch/test_page.py", "watch/test_page_in_a_browser.py", "watch/test_progress.py"),
    *("watch/test_texts_of_users.py", "promises/test_reading.py", "promises/test_accounts.py"),
    *("promises/test_properties.py", "promises/test_traces.py", "promises/test_clocks.py"),
    "promises/test_frozen_clocks.py",
    *("promises/test_accounts_of_waiting.py", "promises/test_deadly_elements.py"),
    *("checkpoint/test_what_comes_again.py", "checkpoint/test_refusals.py", "checkpoint/test_any_damage.py"),
    *("checkpoint/test_walks.py", "checkpoint/test_formats.py", "checkpoint/test_growth.py"),
    *("checkpoint/test_failed_again.py", "checkpoint/test_folds_resume.py", "checkpoint/test_info.py"),
    *("promises/test_chains_in_order.py", "promises/test_joined_sides.py", "simulation/test_simulation.py"),
    *("promises/test_ends_of_workers.py", "promises/test_scripts.py", "promises/test_children.py"),
    *("promises/test_same_replaced.py", "promises/test_broadcast.py", "promises/test_same_contexts.py"),
    *("world/test_takeover.py", "promises/test_ends_of_scripts.py"),
    *("promises/test_streams.py", "promises/test_values.py", "promises/test_readme.py"),
    *("promises/test_writing.py", "promises/test_written_paths.py", "promises/test_tables.py"),
    *("faults/test_written_files.py", "promises/test_written_and_read.py", "promises/test_files_meant.py"),
    *("promises/test_reading_formats.py", "promises/test_reading_goes_wrong.py"),
    *("promises/test_keys_elsewhere.py", "promises/test_groups_that_go_on.py"),
    *("promises/test_broken_lines.py", "promises/test_reduce_fold.py", "promises/test_shutdown.py"),
    *("promises/test_keyed.py", "promises/test_large_keys.py", "promises/test_per_worker.py"),
    "promises/test_per_worker_async.py",
    *("promises/test_names_of_the_dashboard.py", "promises/test_waiting.py", "promises/test_processes.py"),
    *("promises/test_map_batches.py", "promises/test_reentrance.py", "promises/test_batched.py"),
    *("promises/test_held.py", "promises/test_memory_maps.py", "promises/test_idle_workers.py"),
    *("promises/test_persist.py", "checkpoint/test_fingerprint.py", "promises/test_same_options.py"),
    *("promises/test_keys_of_lists.py", "promises/test_same_modules.py", "promises/test_lost_modules.py"),
    *("promises/test_same_logging.py", "promises/test_same_parts.py", "promises/test_odd_objects.py"),
)


@pytest.hookimpl(tryfirst=True)  # before the cases are chosen by their marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Have the longest files begin first where pytest-xdist shares them out: all end at the same time."""
    here = Path(__file__).parent
    for item in items:
        name = item.path.relative_to(here).as_posix() if item.path.is_relative_to(here) else ""
        if name in FAILING:
            item.add_marker(pytest.mark.failing)
        if name in ALIKE:
            item.add_marker(pytest.mark.alike)
        if name in ALIKE_NEWEST:
            item.add_marker(pytest.mark.newest)
        # Ways to call a function: on a local cluster with both, on a bare one and beside a worker with one.
        way = getattr(getattr(item, "callspec", None), "params", {})
        if (
            any(value == "bare" for value in way.values() if isinstance(value, str))
            and name not in ALIKE_NEWEST
        ):
            item.add_marker(pytest.mark.alike)
        elif way.get("one") == "-timeout" and name not in ALIKE:
            item.add_marker(pytest.mark.newest)
        if name in REPEATED and re.search(REPEATED[name], item.name):
            item.add_marker(pytest.mark.slow)
    if hasattr(config, "workerinput"):
        ranks = {here / name: rank for rank, name in enumerate(LONGEST)}
        items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


@pytest.fixture(scope="module", autouse=True)
def as_if_alone(request: pytest.FixtureRequest) -> Iterator[None]:
    """Show a module no other test module, as where its file is run alone: pytest has imported all of them.

    They are the program's own modules, whose state each evaluation looks at: 25 ms of each, with all of them.
    """
    here = Path(__file__).parent
    names = {path.stem for path in here.rglob("test_*.py")} - {request.path.stem}
    others = {name: sys.modules.pop(name) for name in names & sys.modules.keys()}
    yield
    for name, module in others.items():
        sys.modules.setdefault(name, module)


@pytest.fixture(scope="module", autouse=True)
def leaves_no_trace(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a module whose processes, threads, folders or shared segments outlive it."""
    before = remains()
    yield
    left = new_remains(before)
    if left:
        left_behind.append(f"{request.node.nodeid}: {left}")
    assert not left, f"left behind: {left}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say at the end what was left behind, which no list of failed tests has."""
    for found in left_behind:
        terminalreporter.write_line(f"left behind by {found}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Have a run that left something behind end otherwise than with a failed test, which is tried again.

    What is left is told of a module's last test and may be any other's doing: that one, run again alone,
    would pass.
    """
    if hasattr(session.config, "workeroutput"):  # of pytest-xdist: one process of several
        session.config.workeroutput["left behind"] = left_behind
    elif left_behind:
        session.exitstatus = LEFT_BEHIND


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Hear of one of those processes what its tests have left behind."""
    left_behind.extend(getattr(node, "workeroutput", {}).get("left behind", ()))


@pytest.fixture(scope="module")
def cluster(leaves_no_trace: None) -> Iterator[Connection]:
    """Evaluate this module's collections on a local cluster of two real worker processes."""
    with connect(n_workers=2) as connection:
        yield connection


@pytest.fixture
def inline() -> Iterator[Connection]:
    """Evaluate in this process."""
    with connect("inline") as connection:
        yield connection


@pytest.fixture
def scripts(tmp_path: Path) -> Iterator[Scripts]:
    """Run scripts that must leave no process, folder or segment."""
    found = Scripts(tmp_path)
    yield found
    found.check()
