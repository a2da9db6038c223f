@path: '/odata/v4/service'
@requires: 'authenticated-user'
service Service {

  @readonly entity Orders {
    key number       : String(20);
        status       : String(20);
        carrier      : String(40);
        deliveryDate : Date;
  }

  @readonly entity Products {
    key name        : String(60);
        title       : String(80);
        available   : Integer;
        price       : Decimal(9, 2);
        restockDate : Date;
  }

  @readonly entity Customers {
    key ID     : UUID;
        name   : String(80);
        phone  : String(40);
        tier   : String(20);
        health : Integer;
  }

  entity Tickets {
    key ID          : UUID;
        number      : Integer @readonly;
        problem     : String(2000) @mandatory;
        orderNumber : String(20);
        caller      : String(200);
        status      : String(20) default 'open';
        openedAt    : Timestamp @cds.on.insert: $now;
  }

  entity Calls {
    key ID          : UUID;
        caller      : String(200);
        summary     : LargeString;
        disposition : String(40);
        sentiment   : Double;
        durationS   : Integer;
        loggedAt    : Timestamp @cds.on.insert: $now;
  }
}
