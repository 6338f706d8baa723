-- The shop of the demo: made up, the same on every run.
-- Order 1042 was paid back, but the refund was booked on order 1024: two digits changed places.

CREATE TABLE customers (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    city TEXT NOT NULL
);

CREATE TABLE products (
    id INTEGER PRIMARY KEY,
    title TEXT NOT NULL UNIQUE,
    price_cents INTEGER NOT NULL CHECK (price_cents > 0)
);

CREATE TABLE orders (
    id INTEGER PRIMARY KEY,
    customer_id INTEGER NOT NULL REFERENCES customers (id),
    product_id INTEGER NOT NULL REFERENCES products (id),
    quantity INTEGER NOT NULL CHECK (quantity > 0),
    placed_on TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('shipped', 'delivered', 'returned'))
);

CREATE TABLE refunds (
    id INTEGER PRIMARY KEY,
    order_id INTEGER NOT NULL REFERENCES orders (id),
    amount_cents INTEGER NOT NULL CHECK (amount_cents > 0),
    paid_on TEXT,
    note TEXT NOT NULL
);

INSERT INTO customers (id, name, city) VALUES
    (1, 'Mira Okafor', 'Leeds'), (2, 'Jonas Weber', 'Kassel'), (3, 'Aiko Mori', 'Sapporo'),
    (4, 'Lucía Prieto', 'Vigo'), (5, 'Tomasz Zając', 'Lublin'), (6, 'Hanna Lind', 'Umeå'),
    (7, 'Samir Haddad', 'Lyon'), (8, 'Grace Muli', 'Mombasa'), (9, 'Owen Pritchard', 'Swansea'),
    (10, 'Nina Rossi', 'Turin'), (11, 'Pavel Novák', 'Brno'), (12, 'Eva de Wit', 'Breda');

INSERT INTO products (id, title, price_cents) VALUES
    (1, 'desk lamp', 3490), (2, 'wool blanket', 8990), (3, 'kettle', 4200), (4, 'bread knife', 2750),
    (5, 'rain jacket', 11900), (6, 'bicycle light', 1990), (7, 'tea set', 6450);

-- 240 orders, 1001 to 1240; the arithmetic only spreads them over customers, products and days.
WITH RECURSIVE numbers (n) AS (
    SELECT 1001 UNION ALL SELECT n + 1 FROM numbers WHERE n < 1240
)
INSERT INTO orders (id, customer_id, product_id, quantity, placed_on, status)
SELECT n, 2 + (n * 7) % 11, 1 + (n * 5) % 7, 1 + n % 3, date('2026-01-05', '+' || ((n - 1001) / 3) || ' days'),
       CASE n % 6 WHEN 0 THEN 'returned' WHEN 1 THEN 'shipped' ELSE 'delivered' END
FROM numbers;

UPDATE orders SET customer_id = 1, product_id = 2, quantity = 1, status = 'returned' WHERE id = 1042;

-- One refund for each returned order, except the one that the customer asks for.
INSERT INTO refunds (order_id, amount_cents, paid_on, note)
SELECT orders.id, products.price_cents * orders.quantity,
       CASE WHEN orders.id % 4 = 0 THEN NULL ELSE date(orders.placed_on, '+12 days') END,
       CASE (orders.id / 6) % 4
           WHEN 0 THEN 'parcel came back, paid to the card'
           WHEN 1 THEN 'damaged on arrival, paid to the card'
           WHEN 2 THEN 'wrong size, paid as a voucher'
           ELSE 'changed their mind, paid to the card'
       END
FROM orders JOIN products ON products.id = orders.product_id
WHERE orders.status = 'returned' AND orders.id <> 1042;

INSERT INTO refunds (order_id, amount_cents, paid_on, note)
VALUES (1024, 8990, '2026-02-02', 'parcel came back, paid to the card of M. Okafor');
