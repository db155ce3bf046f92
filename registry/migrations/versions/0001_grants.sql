-- What each role may do: exactly registry/migrations/privileges.json, which a test compares with the live database.
-- Partitions get nothing: rows are reached through the parent, where the policies are.

-- ext_gateway: reads what routes a call.
grant select (id, publisher, name) on extension_registry to ext_gateway;
grant select (id, registry_id, version, state, runtime, api_endpoints, yanked_at, deprecated_at) on extension_version to ext_gateway;
grant select (tenant_id, id, registry_id, version_id, is_enabled, status, endpoint_policy) on tenant_extension_install to ext_gateway;

-- ext_runner: reads the registry; writes executions, usage and storage.
grant select on extension_publisher, extension_publisher_identity, extension_registry, extension_version, extension_bundle, extension_denylist
    to ext_runner;
grant select on tenant_extension_install, tenant_extension_install_config, extension_event_subscription to ext_runner;
grant insert on extension_execution_log to ext_runner;
grant select (tenant_id, started_at, id, registry_id, metrics) on extension_execution_log to ext_runner;
grant select, insert, update on extension_quota_usage to ext_runner;
grant select, insert, update, delete on ext_storage_record, ext_storage_usage to ext_runner;

-- ext_admin: writes the registry and the installs; a published version's content, a signer and a revocation stay as they were written.
grant select, insert on extension_publisher, extension_publisher_identity, extension_denylist to ext_admin;
grant select, insert, delete on extension_registry to ext_admin;
grant update (display_name, description, updated_at) on extension_registry to ext_admin;
grant select, insert, delete on extension_version to ext_admin;
grant update (state, published_at, yanked_at, yanked_reason, deprecated_at) on extension_version to ext_admin;
grant select, insert on extension_bundle to ext_admin;
grant select, insert, delete on tenant_extension_install to ext_admin;
grant update (version_id, granted_caps, config, limits, endpoint_policy, is_enabled, status, consented_digest, granted_by, granted_at,
              runner_domain, runner_status, runner_ref, updated_at) on tenant_extension_install to ext_admin;
grant select, insert, delete on tenant_extension_install_config to ext_admin;
grant update (config, providers, version, updated_at) on tenant_extension_install_config to ext_admin;
grant select, insert, update, delete on extension_event_subscription to ext_admin;
grant select on extension_execution_log, extension_quota_usage, ext_storage_usage to ext_admin;
grant insert on extension_audit_log to ext_admin;

-- ext_maintenance: retention and sweeps, by policies that name it.
grant select, delete on extension_execution_log, extension_quota_usage, extension_audit_log to ext_maintenance;
grant select (tenant_id, install_id, namespace, key, value_size_bytes, metadata_size_bytes, ttl_expires_at), delete
    on ext_storage_record to ext_maintenance;
grant select, update on ext_storage_usage to ext_maintenance;
