"""The API only grows: `buf breaking` compares proto/ with the descriptor set in proto/baseline.binpb."""

import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = "proto/twamp/agent/v1/config.proto"


def breaking(root):
    """Runs the comparison that CI runs."""
    return subprocess.run(
        ["buf", "breaking", "--against", "proto/baseline.binpb"], cwd=root, capture_output=True, text=True
    )


class BaselineTest(unittest.TestCase):
    def changed(self, pattern, replacement):
        """Compares a copy of proto/ with one change against the baseline."""
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        root = pathlib.Path(directory.name)
        shutil.copytree(ROOT / "proto", root / "proto")
        shutil.copy(ROOT / "buf.yaml", root)
        text = (root / CONFIG).read_text()
        changed, count = re.subn(pattern, replacement, text)
        self.assertEqual(count, 1, pattern)
        (root / CONFIG).write_text(changed)
        return breaking(root)

    def test_the_api_is_compatible_with_its_baseline(self):
        compared = breaking(ROOT)
        self.assertEqual(compared.returncode, 0, compared.stdout + compared.stderr)

    def test_a_renamed_field_fails(self):
        compared = self.changed(r"probe_count = 12;", "probes_per_test = 12;")
        self.assertNotEqual(compared.returncode, 0)
        self.assertIn("probe_count", compared.stdout)

    def test_a_renumbered_field_fails(self):
        self.assertNotEqual(self.changed(r"probe_count = 12;", "probe_count = 1012;").returncode, 0)

    def test_a_removed_enum_value_fails(self):
        self.assertNotEqual(self.changed(r"  SCHEDULE_POISSON = 2;\n", "").returncode, 0)

    def test_an_added_field_passes(self):
        added = r"\g<0>\n  // Added by a test.\n  bool added = 1000;"
        compared = self.changed(r"optional uint32 probe_count = 12;", added)
        self.assertEqual(compared.returncode, 0, compared.stdout + compared.stderr)


if __name__ == "__main__":
    unittest.main()
