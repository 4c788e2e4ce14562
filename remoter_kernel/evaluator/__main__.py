# This file is the zipapp's entry. It must be read by any Python, however old, so that a
# Python that is too old can be told from one that is missing.
import json
import sys


def refuse(lacks, what):
    sys.stdout.write("REMOTER " + json.dumps({"lacks": lacks, "what": what}) + "\n")
    sys.stdout.flush()
    sys.exit(0)


def use_compiled(archive):
    # What this Python has compiled of the archive lies beside it (see `evaluator.program_archive`). It is
    # named by its checksum: what a disk or a full home has damaged is passed over.
    import os
    import zlib
    from _frozen_importlib_external import MAGIC_NUMBER

    names = (sys.implementation.cache_tag, MAGIC_NUMBER.hex(), sys.flags.optimize)
    begin = "%s.%s.%d." % names
    folder = os.path.dirname(archive)
    try:
        for name in os.listdir(folder):
            if name.startswith(begin) and name.endswith(".zip"):
                place = os.path.join(folder, name)
                with open(place, "rb") as file:
                    checksum = "%08x" % zlib.crc32(file.read())
                if name == begin + checksum + ".zip":
                    sys.path.insert(0, place)
                    return
    except OSError:
        pass


def main():
    if sys.version_info < (3, 9):
        refuse("new python", "%d.%d" % sys.version_info[:2])
    if sys.argv[0].endswith(".pyz"):
        import os

        sys.argv[0] = os.path.abspath(sys.argv[0])  # it is run again, from elsewhere
        use_compiled(sys.argv[0])
    if sys.argv[1:] == ["warden"]:
        from remoter_kernel.evaluator import warden

        warden.main()
        return
    if sys.argv[1:] == ["ask"]:
        from remoter_kernel.evaluator import query

        query.main()
        return
    if sys.argv[1:] == ["transfer"]:
        from remoter_kernel.evaluator import transfer_command

        transfer_command.main()
        return
    if sys.argv[1:2] == ["bridge"]:
        from remoter_kernel.evaluator import bridge

        bridge.main(*sys.argv[2:])
        return
    try:
        import zmq
    except ImportError as error:
        refuse("packages", str(error))
    from importlib.util import find_spec

    if find_spec("jupyter_client") is None:
        refuse("packages", "No module named 'jupyter_client'")
    from remoter_kernel.evaluator import launch

    launch.main(zmq.__version__)


if __name__ == "__main__":
    main()
