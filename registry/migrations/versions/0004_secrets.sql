-- Secrets of installs: sealed values, one row for each name. Whoever writes them can neither open them (the key is the daemon's) nor read them back.

create table tenant_extension_install_secrets (
    tenant_id text collate "C" not null check (tenant_id <> ''),
    install_id uuid not null,
    name text collate "C" not null check (name ~ '^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$'),
    version bigint not null check (version > 0),
    kek_id text collate "C" not null check (char_length(kek_id) between 1 and 640),
    wrapped_key bytea not null check (octet_length(wrapped_key) between 1 and 8192),
    ciphertext bytea not null check (octet_length(ciphertext) between 1 and 66560),
    expires_at timestamptz,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    updated_by text not null check (updated_by <> ''),
    primary key (tenant_id, install_id, name),
    foreign key (tenant_id, install_id) references tenant_extension_install (tenant_id, id) on delete cascade
);

alter table tenant_extension_install_secrets enable row level security, force row level security;
create policy tenant_isolation on tenant_extension_install_secrets to ext_gateway, ext_runner, ext_admin
    using (tenant_id = (select nullif(current_setting('app.tenant_id', true), '')))
    with check (tenant_id = (select nullif(current_setting('app.tenant_id', true), '')));
create policy owner_all on tenant_extension_install_secrets to ext_owner using (true) with check (true);
create policy maintenance_all on tenant_extension_install_secrets to ext_maintenance using (true) with check (true);

-- The administrators' process writes and names, and reads no ciphertext, not even its own (T6).
grant select (tenant_id, install_id, name, version, kek_id, expires_at, created_at, updated_at, updated_by), insert, delete
    on tenant_extension_install_secrets to ext_admin;
grant update (version, kek_id, wrapped_key, ciphertext, expires_at, updated_at, updated_by) on tenant_extension_install_secrets to ext_admin;
grant select on tenant_extension_install_secrets to ext_runner;

-- A rotation wraps data keys anew, under whichever key comes next, and touches no value.
grant select (tenant_id, install_id, name, version, kek_id, wrapped_key) on tenant_extension_install_secrets to ext_maintenance;
grant update (kek_id, wrapped_key) on tenant_extension_install_secrets to ext_maintenance;
grant insert on extension_audit_log to ext_maintenance;

-- The daemon may write down one thing: that an envelope was refused.
create policy refused_secrets on extension_audit_log to ext_runner
    using (tenant_id = (select nullif(current_setting('app.tenant_id', true), '')) and actor = 'runnerd' and action = 'secret.refuse')
    with check (tenant_id = (select nullif(current_setting('app.tenant_id', true), '')) and actor = 'runnerd' and action = 'secret.refuse');
grant insert on extension_audit_log to ext_runner;
