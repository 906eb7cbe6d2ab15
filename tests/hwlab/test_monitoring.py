"""The configuration that is shipped for Prometheus and Alertmanager, with a lab's addresses in it."""

from pathlib import Path

from hwlab import monitoring


def test_the_shipped_configuration_gets_the_labs_addresses_and_keeps_all_else(tmp_path: Path) -> None:
    monitoring._configure(tmp_path, ["10.77.1.11:9747", "10.77.1.12:9747"])
    prometheus, alertmanager = ((tmp_path / f"{name}.yml").read_text() for name in ("prometheus", "alertmanager"))
    assert '- targets: ["10.77.1.11:9747", "10.77.1.12:9747"]' in prometheus
    assert "192.0.2." not in prometheus and "hactl.rules.yml" in prometheus
    assert f'smtp_smarthost: "{monitoring.SMTP}"' in alertmanager
    assert (tmp_path / "hactl.rules.yml").read_text() == (monitoring.CONFIGURATION / "hactl.rules.yml").read_text()
