//! What programs ask of a running instance: the API over TCP, and metrics.

use std::time::Duration;

use anyhow::{Context, Result};
use lb_tests::netns::{Config, Family, Host, Lab, Lb, binary, traffic, wait};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn the_api_over_tcp_follows_the_configuration_and_lets_only_the_token_change_anything() -> Result<()> {
    let family = Family::V4;
    let lab = Lab::one_arm()?;
    let plain = Config::new(&lab, family).to_string();
    let with_api = |listen: &str, file: &str| {
        format!("{plain}\n[api]\nlisten = \"{listen}\"\ntoken_file = \"{file}\"\n")
    };
    lab.balancer.write("/run/token", "geheim\n")?;
    let lb = Lb::start_with_rotation(&lab.balancer, &with_api("0.0.0.0:9180", "/run/token"), 3)?;
    let status = ask(&lab.client, 9180, "/v1/status", "")?;
    assert_eq!((status.0, &status.1["status"]), (200, &Value::from("OK")), "{}", status.1);

    let drain = "/v1/backends/web/10.0.1.11%3A8080/drain";
    let token = |token: &str| format!("--request POST --header 'Authorization: Bearer {token}'");
    for (path, arguments, expected) in [
        (drain, "--request POST".to_owned(), 401),
        (drain, token("falsch"), 401),
        ("/v1/nothing", String::new(), 404),
        ("/v1/status", token("geheim"), 405),
        ("/v1/reload", format!("--request POST --data-binary @{}", binary("lb")?.display()), 413),
        ("/v1/backends/web/nobody/drain", token("geheim"), 404),
    ] {
        let (code, body) = ask(&lab.client, 9180, path, &arguments)?;
        assert_eq!(code, expected, "{path} {arguments}: {body}");
        assert!(body["error"].is_string(), "{path}: {body}");
    }
    let is_draining =
        || -> Result<bool> { Ok(lb.status()?.backend("web", "10.0.1.11:8080")?["state"] == "DRAINING") };
    assert!(!is_draining()?, "nothing has been changed so far");
    assert_eq!(ask(&lab.client, 9180, drain, &token("geheim"))?.0, 200);
    assert!(is_draining()?);
    let served = traffic::curl_many(&lab.client, family.vip_port(80), 100)?;
    assert!(!served.contains_key("web2"), "{served:?}");

    // Another port and another token, asked for through the old port, which still answers that and then is closed.
    lab.balancer.write("/run/token", "anders")?;
    lab.balancer.write("/run/lb.toml", &with_api("0.0.0.0:9181", "/run/token"))?;
    assert_eq!(ask(&lab.client, 9180, "/v1/reload", &token("geheim"))?.0, 200);
    assert!(ask(&lab.client, 9180, "/v1/status", "").is_err());
    assert_eq!(ask(&lab.client, 9181, "/v1/reload", &token("geheim"))?.0, 401);
    assert_eq!(ask(&lab.client, 9181, "/v1/reload", &token("anders"))?.0, 200);

    // An address that cannot be had refuses the reload, and everything stays.
    lab.balancer.write("/run/lb.toml", &with_api("192.0.2.1:9182", "/run/token"))?;
    let refused = Lb::command(&lab.balancer, "reload")?.exit_code(1)?;
    assert!(refused.stderr.contains("api.listen"), "{}", refused.stderr);
    assert_eq!(ask(&lab.client, 9181, "/v1/status", "")?.0, 200);
    lab.balancer.write("/run/lb.toml", &with_api("0.0.0.0:9181", ""))?;
    let refused = Lb::command(&lab.balancer, "reload")?.exit_code(2)?;
    assert!(refused.stderr.contains("token_file"), "{}", refused.stderr);

    // On the loopback reads need no token; nothing can be changed without one.
    lb.reload(&with_api("127.0.0.1:9181", ""))?;
    assert_eq!(ask_at(&lab.balancer, "127.0.0.1:9181", "/v1/status", "")?.0, 200);
    assert_eq!(ask_at(&lab.balancer, "127.0.0.1:9181", "/v1/reload", "--request POST")?.0, 403);
    lb.reload(&plain)?;
    assert!(ask_at(&lab.balancer, "127.0.0.1:9181", "/v1/status", "").is_err());
    Ok(())
}

/// Status code and document of a request to the balancer.
fn ask(host: &Host, port: u16, path: &str, arguments: &str) -> Result<(u16, Value)> {
    ask_at(host, &format!("10.0.1.2:{port}"), path, arguments)
}

fn ask_at(host: &Host, server: &str, path: &str, arguments: &str) -> Result<(u16, Value)> {
    let curl = "curl --silent --max-time 5 --write-out '\\n%{http_code}'";
    let output = host.shell(&format!("{curl} {arguments} http://{server}{path}"))?.success()?;
    let (body, code) = output.stdout.rsplit_once('\n').with_context(|| format!("no answer: {output:?}"))?;
    Ok((code.parse()?, serde_json::from_str(body).with_context(|| format!("no JSON: {body}"))?))
}

#[test]
fn metrics_are_what_prometheus_reads() -> Result<()> {
    let family = Family::V4;
    let lab = Lab::one_arm()?;
    let lb = Lb::start_with_rotation(&lab.balancer, &Config::new(&lab, family).to_string(), 3)?;
    traffic::curl_many(&lab.client, family.vip_port(80), 10)?;
    let socket = "curl --silent --fail --unix-socket /run/lb/api.sock";
    // Its own exit status, and no complaint of its linter.
    let checked =
        lab.balancer.shell(&format!("{socket} http://lb/metrics | promtool check metrics"))?.success()?;
    assert_eq!((checked.stdout.as_str(), checked.stderr.as_str()), ("", ""));
    // Flows are counted once a second.
    let metrics = wait::until("the SNAT ports to be counted", PATIENCE, || {
        let metrics = lb.metrics()?;
        Ok(metrics.contains("lb_snat_ports_in_use{").then_some(metrics))
    })?;
    for (name, kind) in [
        ("lb_backend_up", "gauge"),
        ("lb_health_status", "gauge"),
        ("lb_health_checks_total", "counter"),
        ("lb_new_flows_total", "counter"),
        ("lb_active_flows", "gauge"),
        ("lb_bytes_total", "counter"),
        ("lb_packets_total", "counter"),
        ("lb_drops_total", "counter"),
        ("lb_snat_ports_in_use", "gauge"),
        ("lb_config_reload_failures_total", "counter"),
    ] {
        assert!(metrics.contains(&format!("# TYPE {name} {kind}\n")), "no {kind} {name} in\n{metrics}");
        assert!(
            metrics.contains(&format!("\n{name}{{")) || metrics.contains(&format!("\n{name} ")),
            "{name}"
        );
    }
    assert!(metrics.contains("lb_new_flows_total{listener=\"web-0\"} 10\n"), "{metrics}");
    let head = lab.balancer.run(&format!("{socket} --head http://lb/metrics"))?.success()?.stdout;
    assert!(head.contains("text/plain; version=0.0.4"), "{head}");
    Ok(())
}
