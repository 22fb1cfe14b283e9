import { createParamDecorator, UnauthorizedException, type ExecutionContext } from "@nestjs/common";

/**
 * The user who asks. Here a gateway in front has authenticated them and says so in a header, which nobody else may
 * be able to send; take the user from your own session or token instead.
 */
export const User = createParamDecorator((_: unknown, context: ExecutionContext): string => {
  const { headers } = context.switchToHttp().getRequest<{ headers: Record<string, string | undefined> }>();
  const userUuid = headers["x-user-uuid"];
  if (userUuid === undefined) throw new UnauthorizedException();
  return userUuid;
});
