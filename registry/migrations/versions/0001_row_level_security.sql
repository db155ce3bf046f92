-- Row-level security on every table with a tenant. FORCE, so that it holds for the owner too; the owner and the maintenance role get policies
-- that name them (without one, a data migration would touch no row and say nothing).
-- The setting is read in a sub-select: once for each statement, not once for each row. An unset or empty setting matches no row.

do $$
declare
    relation text;
begin
    foreach relation in array array[
        'tenant_extension_install', 'tenant_extension_install_config', 'extension_event_subscription', 'extension_execution_log',
        'extension_execution_log_default', 'extension_quota_usage', 'ext_storage_record', 'ext_storage_usage'
    ] loop
        execute format('alter table %I enable row level security, force row level security', relation);
        execute format(
            'create policy tenant_isolation on %I to ext_gateway, ext_runner, ext_admin '
            'using (tenant_id = (select nullif(current_setting(''app.tenant_id'', true), ''''))) '
            'with check (tenant_id = (select nullif(current_setting(''app.tenant_id'', true), '''')))', relation);
        execute format('create policy owner_all on %I to ext_owner using (true) with check (true)', relation);
    end loop;
    foreach relation in array array[
        'extension_execution_log', 'extension_quota_usage', 'ext_storage_record', 'ext_storage_usage', 'extension_audit_log'
    ] loop
        execute format('create policy maintenance_all on %I to ext_maintenance using (true) with check (true)', relation);
    end loop;
end
$$;

alter table extension_audit_log enable row level security, force row level security;
-- A transaction without tenant writes the platform's rows, one with a tenant writes that tenant's; neither can write the other's.
create policy audit_scope on extension_audit_log to ext_admin
    using (tenant_id = (select coalesce(nullif(current_setting('app.tenant_id', true), ''), '*')))
    with check (tenant_id = (select coalesce(nullif(current_setting('app.tenant_id', true), ''), '*')));
create policy owner_all on extension_audit_log to ext_owner using (true) with check (true);
