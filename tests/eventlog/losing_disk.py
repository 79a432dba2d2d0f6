"""A file system in memory that knows what was synced, and can lose power.

A power loss keeps what was synced, and of the rest any subset: written sectors of 512 bytes dropped one by one (torn
writes, reordered writes), sizes, names of new files, mapped pages as they were at any moment since their last sync,
even between two words. Folders are durable once made: not modelled.
"""

from infra.eventlog.filesystem import FileSystem

SECTOR = 512


class Mapped(bytearray):
    """A mapped file: everyone who maps it gets this one object."""

    def close(self):
        """Its pages outlive whoever mapped them."""


class Node:
    """A file: what is live, what is durable, and what happened in between."""

    def __init__(self, durable=b""):
        self.durable = durable
        self.live = bytearray(durable)
        self.changes = []  # ("write", position, data) or ("size", size), not yet synced
        self.moments = []  # contents of a mapped file since its last sync

    def content(self):
        return bytes(self.live[:])

    def look(self):
        if isinstance(self.live, Mapped) and (not self.moments or self.moments[-1] != self.content()):
            self.moments.append(self.content())

    def synced(self):
        self.durable, self.changes = self.content(), []
        self.moments = [self.durable] if isinstance(self.live, Mapped) else []

    def after_power_loss(self, rng):
        if self.moments:
            return self._mapped_after_power_loss(rng)
        content = bytearray(self.durable)
        keep = rng.choice([0.0, 1.0, rng.random()])
        for kind, where, data in self.changes:
            if kind == "size":
                if rng.random() < keep:
                    content[where:] = bytes(max(0, where - len(content)))
                continue
            if rng.random() < 0.3:  # the size reached the disk, the data perhaps not
                content.extend(bytes(max(0, where + len(data) - len(content))))
            start = where
            while start < where + len(data):
                stop = min(where + len(data), (start // SECTOR + 1) * SECTOR)
                if rng.random() < keep:
                    content.extend(bytes(max(0, stop - len(content))))
                    content[start:stop] = data[start - where : stop - where]
                start = stop
        return bytes(content)

    def _mapped_after_power_loss(self, rng):
        index = rng.randrange(len(self.moments))
        before, after = self.moments[max(0, index - 1)], self.moments[index]
        if rng.random() < 0.6:
            return after
        words = range(0, len(after), 8)
        return b"".join((before if rng.random() < 0.5 else after)[at : at + 8] for at in words)


class LosingDisk(FileSystem):
    """See the module. `before_call` is called before each call that changes something."""

    def __init__(self):
        self.folders = {}  # path -> {name: Node}
        self.durable_names = {}
        self.name_changes = {}  # path -> [(name, Node or None, old name or None)]
        self.files = {}  # fd -> Node
        self.locks = {}  # Node -> fd
        self.next_fd = 1_000
        self.before_call = lambda name: None

    def _change(self, call):
        for names in self.folders.values():
            for node in names.values():
                node.look()
        self.before_call(call)

    def unfinished(self):
        """Whether anything but mapped pages waits for a sync."""
        nodes = (node for names in self.folders.values() for node in names.values())
        return any(self.name_changes.values()) or any(node.changes for node in nodes)

    def contents(self):
        """{path: bytes} of every file."""
        return {
            f"{path}/{name}": node.content() for path, names in self.folders.items() for name, node in names.items()
        }

    def copy(self, changed):
        """Another disk with the same files, all durable, but for what `changed` ({path: bytes}) says."""
        other = LosingDisk()
        for path in self.folders:
            other.make_folder(path)
        for path, content in {**self.contents(), **changed}.items():
            folder, _, name = path.rpartition("/")
            other.folders[folder][name] = Node(content)
        return other

    def power_loss(self, rng):
        """What the disk holds when power returns."""
        left = LosingDisk()
        for path, durable in self.durable_names.items():
            names = dict(durable)
            for name, node, old in self.name_changes[path]:
                if rng.random() < 0.5:
                    continue
                if old is not None:
                    names.pop(old, None)
                if node is None:
                    names.pop(name, None)
                else:
                    names[name] = node
            kept = {name: Node(node.after_power_loss(rng)) for name, node in names.items()}
            left.folders[path], left.durable_names[path], left.name_changes[path] = kept, dict(kept), []
        return left

    def end_process(self):
        self.files, self.locks = {}, {}
        self.before_call = lambda name: None

    def open(self, path, *, write=False, create=False):
        folder, _, name = path.rpartition("/")
        names = self.folders.get(folder, {})
        if name not in names:
            if not create:
                raise FileNotFoundError(2, "No such file or directory", path)
            self._change("create")
            names[name] = Node()
            self.name_changes[folder].append((name, names[name], None))
        self.next_fd += 1
        self.files[self.next_fd] = names[name]
        return self.next_fd

    def close(self, fd):
        node = self.files.pop(fd, None)
        if self.locks.get(node) == fd:
            del self.locks[node]

    def pread(self, fd, size, position):
        return bytes(self.files[fd].live[position : position + size])

    def pwrite(self, fd, data, position):
        self._change("pwrite")
        node = self.files[fd]
        if position > len(node.live):
            node.live.extend(bytes(position - len(node.live)))
        node.live[position : position + len(data)] = data
        node.changes.append(("write", position, bytes(data)))
        return len(data)

    def truncate(self, fd, size):
        self._change("truncate")
        node = self.files[fd]
        node.live[size:] = bytes(max(0, size - len(node.live)))
        node.changes.append(("size", size, b""))

    def sync(self, fd):
        self._change("sync")
        self.files[fd].synced()

    def size(self, fd):
        return len(self.files[fd].live)

    def exists(self, path):
        folder, _, name = path.rpartition("/")
        return path in self.folders or name in self.folders.get(folder, {})

    def list(self, path):
        return list(self.folders[path])

    def make_folder(self, path):
        for table, empty in ((self.folders, {}), (self.durable_names, {}), (self.name_changes, [])):
            table.setdefault(path, empty)

    def rename(self, source, target):
        self._change("rename")
        folder, _, old = source.rpartition("/")
        name = target.rpartition("/")[2]
        self.folders[folder][name] = self.folders[folder].pop(old)
        self.name_changes[folder].append((name, self.folders[folder][name], old))

    def unlink(self, path):
        self._change("unlink")
        folder, _, name = path.rpartition("/")
        del self.folders[folder][name]
        self.name_changes[folder].append((name, None, None))

    def sync_folder(self, path):
        self._change("sync_folder")
        if path in self.folders:
            self.durable_names[path], self.name_changes[path] = dict(self.folders[path]), []

    def map(self, fd, size):
        node = self.files[fd]
        if not isinstance(node.live, Mapped):
            assert len(node.live) == size
            node.live = Mapped(node.live)
            node.live.node = node
            node.moments = [node.durable, node.content()]
        return node.live

    def sync_map(self, mapped):
        self._change("sync_map")
        mapped.node.synced()

    def try_lock(self, fd):
        return self.locks.setdefault(self.files[fd], fd) == fd

    def unlock(self, fd):
        self.locks.pop(self.files[fd], None)
