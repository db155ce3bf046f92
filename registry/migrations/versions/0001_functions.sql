-- Functions. Those with SECURITY DEFINER run as ext_owner: each is listed in docs/adr/0003-database-roles.md, has a fixed search_path,
-- names every table with its schema, and may be executed only by the role that needs it.

create function extrunner_keep_published() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    if old.state = 'published' and (tg_op = 'DELETE' or new.state <> 'published' or new.published_at <> old.published_at) then
        raise exception 'a published version stays as it was published' using errcode = 'restrict_violation';
    end if;
    if tg_op = 'DELETE' then
        return old;
    end if;
    return new;
end
$$;
revoke all on function extrunner_keep_published() from public;
create trigger keep_published before update or delete on extension_version for each row execute function extrunner_keep_published();

-- The one question across tenants that the daemon may ask: does anybody's enabled install hold this version? It answers yes or no.
create function extrunner_is_interface_served(extension_ref text, bundle_hash text) returns boolean
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select exists (
        select
          from public.extension_bundle b
          join public.extension_version v on v.id = b.version_id and v.state = 'published'
          join public.extension_registry r on r.id = v.registry_id
          join public.tenant_extension_install i on i.version_id = v.id and i.is_enabled
         where b.content_hash = bundle_hash
           and (r.name = extension_ref or r.id::text = extension_ref)
           and not exists (select from public.extension_denylist d where d.content_hash = b.content_hash))
$$;
revoke all on function extrunner_is_interface_served(text, text) from public;
grant execute on function extrunner_is_interface_served(text, text) to ext_runner;

-- Makes the partitions of this month and the following ones, each under row-level security before it holds a row, and with no grant.
create function extrunner_create_execution_log_partitions(months_ahead integer) returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    first_month constant timestamp := date_trunc('month', now() at time zone 'UTC');
    lower_bound timestamp;
    child text;
    made integer := 0;
begin
    if months_ahead not between 0 and 24 then
        raise exception 'months_ahead must be 0 to 24' using errcode = 'invalid_parameter_value';
    end if;
    for step in 0 .. months_ahead loop
        lower_bound := first_month + make_interval(months => step);
        child := 'extension_execution_log_' || to_char(lower_bound, 'YYYYMM');
        continue when to_regclass('public.' || child) is not null;
        execute format('create table public.%I (like public.extension_execution_log including defaults including constraints)', child);
        execute format('alter table public.%I enable row level security, force row level security', child);
        execute format(
            'create policy tenant_isolation on public.%I to ext_gateway, ext_runner, ext_admin '
            'using (tenant_id = (select nullif(current_setting(''app.tenant_id'', true), ''''))) '
            'with check (tenant_id = (select nullif(current_setting(''app.tenant_id'', true), '''')))', child);
        execute format('create policy owner_all on public.%I to ext_owner using (true) with check (true)', child);
        execute format(
            'with moved as (delete from public.extension_execution_log_default where started_at >= %L and started_at < %L returning *) '
            'insert into public.%I select * from moved',
            lower_bound::text || '+00', (lower_bound + interval '1 month')::text || '+00', child);
        execute format(
            'alter table public.extension_execution_log attach partition public.%I for values from (%L) to (%L)',
            child, lower_bound::text || '+00', (lower_bound + interval '1 month')::text || '+00');
        made := made + 1;
    end loop;
    return made;
end
$$;
revoke all on function extrunner_create_execution_log_partitions(integer) from public;
grant execute on function extrunner_create_execution_log_partitions(integer) to ext_maintenance;
