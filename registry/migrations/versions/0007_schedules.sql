-- When an install's endpoint is to be called by itself. The payload is kept as the text that the extension gave.

create table extension_schedule (
    tenant_id text collate "C" not null check (tenant_id <> ''),
    id uuid not null,
    install_id uuid not null,
    name text collate "C" check (char_length(name) between 1 and 128),
    endpoint_method text not null check (endpoint_method in ('GET', 'POST')),
    endpoint_path text collate "C" not null check (endpoint_path like '/%'),
    cron text not null check (char_length(cron) between 9 and 128),
    timezone text not null check (char_length(timezone) between 1 and 64),
    enabled boolean not null,
    stopped_by text check (stopped_by <> ''),
    payload text check (char_length(payload) between 2 and 100000),
    revision bigint not null default 1 check (revision > 0),
    last_run_at timestamptz,
    last_run_status text,
    last_error text check (char_length(last_error) <= 4000),
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    primary key (tenant_id, id),
    unique (tenant_id, install_id, name),
    foreign key (tenant_id, install_id) references tenant_extension_install (tenant_id, id) on delete cascade
);

-- The times of an install's last changes. Its row is locked by whoever changes a schedule, so that the bounds hold for a fleet of daemons.
create table extension_schedule_changes (
    tenant_id text collate "C" not null check (tenant_id <> ''),
    install_id uuid not null,
    changed_at timestamptz[] not null,
    primary key (tenant_id, install_id),
    foreign key (tenant_id, install_id) references tenant_extension_install (tenant_id, id) on delete cascade
);

do $$
declare
    relation text;
begin
    foreach relation in array array['extension_schedule', 'extension_schedule_changes'] loop
        execute format('alter table %I enable row level security, force row level security', relation);
        execute format(
            'create policy tenant_isolation on %I to ext_gateway, ext_runner, ext_admin '
            'using (tenant_id = (select nullif(current_setting(''app.tenant_id'', true), ''''))) '
            'with check (tenant_id = (select nullif(current_setting(''app.tenant_id'', true), '''')))', relation);
        execute format('create policy owner_all on %I to ext_owner using (true) with check (true)', relation);
    end loop;
end
$$;

-- The daemon writes what extensions ask for and what came of a run. It can neither stop a schedule nor undo an administrator's stop;
-- administrators stop, let go on and delete, and change nothing of what an extension asked for.
grant select, delete on extension_schedule to ext_runner;
grant insert (tenant_id, id, install_id, name, endpoint_method, endpoint_path, cron, timezone, enabled, payload) on extension_schedule
    to ext_runner;
grant update (name, endpoint_method, endpoint_path, cron, timezone, enabled, payload, revision, last_run_at, last_run_status, last_error,
              updated_at) on extension_schedule to ext_runner;
grant select, insert, update on extension_schedule_changes to ext_runner;
grant select, delete on extension_schedule to ext_admin;
grant update (enabled, stopped_by, revision, updated_at) on extension_schedule to ext_admin;
