def test_tiny(tiny_run):
    from csr.runtime import BundleRunner
    r = BundleRunner(tiny_run.bundle)
    print(tiny_run.parity, r.golden_error())
    assert r.golden_error() < 1e-3
