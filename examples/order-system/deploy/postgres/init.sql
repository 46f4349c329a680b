-- A role and a database for each service. Nobody can connect to another's.
create role users login password 'users';
create role orders login password 'orders';
create role products login password 'products';
create role payments login password 'payments';
create role inventory login password 'inventory';
create role notifications login password 'notifications';
create role analytics login password 'analytics';

create database users_db owner users;
create database orders_db owner orders;
create database products_db owner products;
create database payments_db owner payments;
create database inventory_db owner inventory;
create database notifications_db owner notifications;
create database analytics_db owner analytics;

revoke connect on database users_db, orders_db, products_db, payments_db, inventory_db, notifications_db, analytics_db from public;
grant connect on database users_db to users;
grant connect on database orders_db to orders;
grant connect on database products_db to products;
grant connect on database payments_db to payments;
grant connect on database inventory_db to inventory;
grant connect on database notifications_db to notifications;
grant connect on database analytics_db to analytics;
